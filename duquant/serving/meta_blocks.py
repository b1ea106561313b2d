"""Decoder blocks as transformers builds them, on the meta device, and their parts for an engine."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from duquant.export.hugging_face import DuquantQuantizer
from duquant.export.quantization_config import DuquantConfig
from duquant.model.checkpoint import Checkpoint
from duquant.model.execution import transform_of
from duquant.model.skeleton import build_skeleton
from duquant.model.structure import ATTENTION, SITES
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.serving.fused_linear import FusedLinear
from duquant.serving.stored_names import FUSED


def meta_blocks(
    directory: Path, quantization: DuquantConfig, dtype: torch.dtype
) -> list[nn.Module]:
    """The quantized decoder blocks of a model directory, without memory.

    Args:
        directory: holds ``config.json`` and the weights.
        quantization: what ``config.json`` says of the quantization.
        dtype: of everything that is not quantized.

    Raises:
        ValueError: if the directory was altered or does not fit together.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    skeleton = build_skeleton(config, dtype, str(directory))
    files = sorted(set(Checkpoint(directory).files.values()))
    quantizer: Any = DuquantQuantizer(quantization)
    quantizer.preprocess_model(skeleton, checkpoint_files=[str(file) for file in files])
    return list(skeleton.model.layers)


def fused_linear(block: nn.Module, name: str) -> FusedLinear:
    """The modules of one of vLLM's linears, as a copy of those of a block.

    Args:
        block: from :func:`meta_blocks`.
        name: ``self_attn.qkv_proj`` and so on.

    Raises:
        ValueError: if the block has no such linear.
    """
    if name not in FUSED:
        raise ValueError(f"{name} is no linear of a decoder block that duquant knows")
    block, parent = copy.deepcopy(block), name.partition(".")[0]
    linears: Any = {part: block.get_submodule(f"{parent}.{part}_proj") for part in FUSED[name]}
    first = f"{parent}.{FUSED[name][0]}_proj"
    site = transform_of(block, next(site for site in SITES if first in site.linears))
    for linear in linears.values():
        linear.site = None
    if name != "self_attn.qkv_proj":
        return FusedLinear(site, linears)
    attention = block.get_submodule(f"{ATTENTION}.attention_quantizer")
    assert isinstance(attention, AttentionQuantizer)
    attention.model_config = None
    return FusedLinear(site, linears, attention)
