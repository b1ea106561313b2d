"""What ``config.json`` of a quantized model says of its quantization, checked when it is read."""

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from duquant.config import Recipe
from duquant.export.checksums import RECIPE, recipe_checksum

QUANT_METHOD = "duquant"
NOTICE_FIELD = "experts_implementation"
NOTICE = "duquant (pip install duquant, then import duquant before loading)"
"""What ``config.json`` says for transformers without duquant.

It would warn of an unknown method, leave all packed tensors aside, and give a model of random
weights. It does refuse an implementation of experts that it does not know, also for models that
have none, and quotes its name. With duquant the field stands for the default. That of attention
will not do: users choose it, and ``output_attentions`` forbids most."""
FORMAT_VERSION = 3
OLDEST_VERSION = 2
RECORDED_SINCE = 3
"""Models of this version and later say which configuration they were quantized with.

Version 3 gave a transform's tensors other names, and biases of Q, K and V to attention
(:mod:`duquant.export.packed_block`); models of version 2 are read as they are."""


class DuquantConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a model directory.

    Args:
        recipe: :meth:`duquant.config.Recipe.to_dict` of the recipe.
        format_version: version of the layout of tensors.
        checksums: of the recipe and of every part of the model, by name (see
            :mod:`duquant.export.checksums`).
        model_config: fields of the model's configuration that decide its numbers (see
            :mod:`duquant.export.config_record`); directories of version 2 may have none.
        quant_method: always "duquant".

    Raises:
        ValueError: if the directory has another format, its recipe makes no sense or was altered,
            or its checksums or the record of the configuration are gone.
    """

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        checksums: dict[str, str] | None = None,
        model_config: dict[str, Any] | None = None,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        if not isinstance(format_version, int) or format_version < 1:
            raise ValueError(f"format_version is {format_version!r}; it must be a whole number")
        if not OLDEST_VERSION <= format_version <= FORMAT_VERSION:
            remedy = "install a newer one" if format_version > FORMAT_VERSION else "quantize again"
            raise ValueError(
                f"the model directory has format version {format_version}; this duquant reads "
                f"versions {OLDEST_VERSION} to {FORMAT_VERSION}: {remedy}"
            )
        if recipe is None:
            raise ValueError("quantization_config has no recipe: the model directory is damaged")
        if not isinstance(checksums, dict):
            raise ValueError("quantization_config has no checksums: the model directory is damaged")
        if not isinstance(model_config, dict | None):
            raise ValueError("quantization_config has a damaged model_config")
        if model_config is None and format_version >= RECORDED_SINCE:
            raise ValueError(
                f"quantization_config has no model_config, which format version {format_version} "
                f"always has: put config.json back, or quantize again"
            )
        if unknown:
            raise ValueError(f"quantization_config has an unknown key: {min(unknown)}")
        Recipe.from_dict(recipe)
        if checksums.get(RECIPE) != recipe_checksum(recipe):
            raise ValueError("the recipe in config.json is not the one the model was quantized by")
        self.quant_method = quant_method
        self.format_version = format_version
        self.recipe = recipe
        self.checksums = checksums
        self.model_config = model_config


def drop_notice(config: Any) -> None:
    """Take the notice for others off a configuration of transformers, before it is built."""
    if config._experts_implementation == NOTICE:
        config._experts_implementation = None
