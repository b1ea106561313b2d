"""What a target without transforms writes of a block beside its quantized weights."""

from torch import Tensor, nn

from duquant.model.structure import ATTENTION, LINEARS


def plain_parts(block: nn.Module) -> dict[str, Tensor]:
    """Norms, and the biases of linears, under the names of the original model.

    Biases of Q, K and V that attention adds go back to their projections.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in block.named_parameters():
        if not any(name.startswith(f"{linear}.") for linear in LINEARS):
            tensors[name.replace(".norm.weight", ".weight")] = parameter
    for name in LINEARS:
        bias = getattr(block.get_submodule(name), "bias", None)
        if bias is not None:
            tensors[f"{name}.bias"] = bias
    biases = getattr(block.get_submodule(f"{ATTENTION}.attention_quantizer"), "biases", None)
    if biases is not None:
        for operand, bias in biases.named_buffers():
            tensors[f"{ATTENTION}.{operand[0]}_proj.bias"] = bias
    return {name: tensor.detach() for name, tensor in tensors.items()}
