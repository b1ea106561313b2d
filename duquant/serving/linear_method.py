"""How vLLM's linears hold and run packed weights."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase

from duquant.nn.execution import Execution
from duquant.serving.fused_linear import FusedLinear
from duquant.serving.stored_names import CHILD

logger = init_logger(f"vllm.{__name__}")


class PackedLinearMethod(LinearMethodBase):
    """Gives a linear of vLLM the child that does its work.

    Args:
        fused: the modules, on the meta device.
        execution: how to compute.
    """

    def __init__(self, fused: FusedLinear, execution: Execution) -> None:
        super().__init__()
        self.fused: FusedLinear | None = fused
        self.execution = execution

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make room for the tensors; vLLM loads them by name.

        Raises:
            ValueError: if vLLM wants another shape.
        """
        fused, self.fused = self.fused, None
        assert fused is not None
        if fused.out_features != output_partition_sizes or fused.site.width != input_size:
            raise ValueError(
                f"vLLM asks for a linear of {input_size} inputs and {output_partition_sizes} "
                f"outputs; the model directory has {fused.site.width} and {fused.out_features}"
            )
        layer.add_module(CHILD, fused.to_empty(device=torch.get_default_device()))
        tensors: list[Any] = [*fused.buffers(), *fused.parameters()]
        for tensor in tensors:
            tensor.weight_loader = _copy  # where vLLM looks for it

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Lay the loaded weights out for what multiplies them."""
        layer.register_parameter("bias", None)  # the child has its own
        how = getattr(layer, CHILD).make_ready(self.execution)
        logger.info_once("duquant: %s", how)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Outputs ``(tokens, out)``; biases are the child's."""
        outputs: Tensor = getattr(layer, CHILD)(x)
        return outputs


def _copy(tensor: Tensor, loaded: Tensor, shard: Any = None) -> None:
    """Take over what a file holds; linears are loaded one by one, so there are no shards."""
    if tensor.shape != loaded.shape:
        raise ValueError(f"a stored tensor is {tuple(loaded.shape)}, not {tuple(tensor.shape)}")
    tensor.data.copy_(loaded)
