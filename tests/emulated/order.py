"""Operations that a GPU may compute otherwise the next time, in the last bits or more.

Several of CUDA's threads add to one place, or write to it, in whatever order they come. The list is
that of ``torch.use_deterministic_algorithms``, and fused attention, whose backward pass adds so.
"""

import re
from typing import Any

import torch

ANY_ORDER = re.compile(
    r"""aten::_?(unsafe_)?(
    index_add | index_copy | index_put | index_put_impl | index_reduce | put
    | scatter | scatter_add | scatter_reduce | segment_reduce
    | histc | bincount | cumsum | cumprod | logcumsumexp | median | nanmedian
    | embedding_dense_backward | embedding_(sparse|bag)\w*
    | nll_loss\w* | \w*ctc_loss\w* | max_unpool\w* | \w*pool\w*_backward
    | upsample\w*_backward | grid_sampler\w*_backward | (reflection|replication)_pad\w*_backward
    | \w*convolution\w* | \w*attention\w*
    )_?(\.\w+)?""",
    re.VERBOSE,
)
"""Their names. Fused attention counts forward too, a loss because its gradient follows."""


def keeps_an_order(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether CUDA computes an operation the same way every time, as shapes and dtypes tell."""
    name = function.name()
    if ANY_ORDER.fullmatch(name) is None:
        return True
    match name.removeprefix("aten::").partition(".")[0].removesuffix("_"):
        case "scatter_add":  # duquant/ops/fake_quantize.py: one index in a row meets no other
            return bool(args[2].shape[args[1]] == 1)
        case "scatter":  # of one number, which all threads write
            return not isinstance(args[3], torch.Tensor)
        case "cumsum" | "cumprod":
            return not args[0].is_floating_point()
        case "median" | "nanmedian":  # without the place where it was found
            return len(args) == 1
    return False
