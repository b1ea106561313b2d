"""How vLLM's linears hold and run packed weights.

Where several devices share the model, each computes some of the outputs
(:mod:`duquant.serving.row_shards`). A linear whose inputs vLLM shares out gathers them first, and
hands its outputs to vLLM's sum over all devices with zeros in the place of the others'.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase

from duquant.nn.execution import Execution
from duquant.serving.fused_linear import FusedLinear
from duquant.serving.row_shards import Rank, cut_rows
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
        self.outputs_around: tuple[int, int] | None = None

    def create_weights(
        self,
        layer: Any,
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
        rank = Rank(layer.tp_rank, layer.tp_size)
        sizes = output_partition_sizes
        if input_size_per_partition != input_size:
            sizes = [output_size // rank.count]
            first = rank.index * sizes[0]
            self.outputs_around = (first, output_size - sizes[0] - first)
        if fused.site.width != input_size or len(fused.linears) != len(sizes):
            raise ValueError(
                f"vLLM asks for {len(sizes)} linears of {input_size} inputs; the model directory "
                f"has {len(fused.linears)} of {fused.site.width}"
            )
        rows = cut_rows(fused, sizes, rank)
        layer.add_module(CHILD, fused.to_empty(device=torch.get_default_device()))
        tensors: dict[str, Any] = dict([*fused.named_buffers(), *fused.named_parameters()])
        for name, tensor in tensors.items():  # vLLM looks for it there
            tensor.weight_loader = partial(_copy, rows=rows.get(name, slice(None)))

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Lay the loaded weights out for what multiplies them."""
        layer.register_parameter("bias", None)  # the child has its own
        how = getattr(layer, CHILD).make_ready(self.execution)
        logger.info_once("duquant: %s", how)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Outputs ``(tokens, out)``; biases are the child's."""
        child = getattr(layer, CHILD)
        if self.outputs_around is None:
            outputs: Tensor = child(x)
            return outputs
        return F.pad(child(tensor_model_parallel_all_gather(x)), self.outputs_around)


def _copy(tensor: Tensor, loaded: Tensor, shard: Any = None, *, rows: slice) -> None:
    """Take over rows of what a file holds; linears are loaded one by one, so none is a shard."""
    part = loaded[rows]
    if tensor.shape != part.shape:
        raise ValueError(f"a stored tensor is {tuple(part.shape)}, not {tuple(tensor.shape)}")
    tensor.data.copy_(part)
