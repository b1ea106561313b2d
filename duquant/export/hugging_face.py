"""transformers loads the model directory: one quantization method more, registered by name.

``AutoModelForCausalLM.from_pretrained(directory)`` builds the architecture that ``config.json``
names on the meta device, and then asks the quantization method named there to prepare the skeleton.
Here every decoder block gets the modules its stored tensors describe; after that transformers loads
tensors, places them and dispatches devices as for any model. No code comes with the directory.
"""

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import WeightRenaming
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)

from duquant.compute_device import find_device
from duquant.config import Recipe
from duquant.export.checksums import RECIPE, file_checksums, part_checksums, recipe_checksum
from duquant.export.config_record import config_record, require_recorded
from duquant.export.packed_block import OLD_SITE_NAMES, unpack_block
from duquant.export.quantization_config import FORMAT_VERSION, QUANT_METHOD, DuquantConfig
from duquant.export.stored_values import require_sensible_files
from duquant.model.checkpoint import BASE, HEAD, full_names, meta_tensors
from duquant.model.execution import configure_execution, describe_kernels
from duquant.model.notice import NOTICE, NOTICE_FIELD, drop_notice
from duquant.nn.attention import register_attention, require_implementation
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.execution import Backend, Execution, WeightsInMemory
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.planned_memory import bytes_at_work

logger = logging.getLogger(__name__)


class DuquantQuantizer(HfQuantizer):
    """Prepares skeletons for packed tensors and checks what was loaded."""

    quantization_config: DuquantConfig

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the packed tensors again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed integers have no gradient, adapters beside them do."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` works."""
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Everything runs wherever PyTorch does; but a model cannot be quantized while loading.

        Raises:
            ValueError: if the directory holds a model that is not quantized.
        """
        if not self.pre_quantized:
            raise ValueError(
                "duquant models are calibrated, not quantized while loading: see duquant.quantize"
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """Called before the model is built: take the notice for others off the configuration."""
        drop_notice(config)
        return config

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        """Bytes per element that ``device_map="auto"`` plans with: those there are after a token.

        What it fills is the GPU, if there is one.
        """
        owner, _, part = param_name.rpartition(".")
        linear = model.get_submodule(owner)
        if part != "packed" or not isinstance(linear, PackedLinear):
            return float(param.element_size())
        return bytes_at_work(linear, find_device("auto")) / param.numel()

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        require_implementation(model.config._attn_implementation)
        recipe = Recipe.from_dict(self.quantization_config.recipe)
        files = [Path(file) for file in kwargs["checkpoint_files"]]
        stored = _with_full_names(meta_tensors(files))
        blocks, checksums = _blocks(model), self.quantization_config.checksums
        num_stored = sum(part.startswith("block ") for part in checksums)
        if num_stored != len(blocks):
            raise ValueError(
                f"config.json asks for {len(blocks)} blocks; the quantized model has {num_stored}"
            )
        for index, block in enumerate(blocks):
            prefix = f"model.layers.{index}."
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in stored.items()
                if name.startswith(prefix)
            }
            try:
                unpack_block(block, tensors, recipe, model.dtype)
            except ValueError as error:
                raise ValueError(f"block {index} of the quantized model: {error}") from error
        _require_stored(model, stored)
        self._require_unaltered(model, files)
        return model

    def _require_unaltered(self, model: Any, files: list[Path]) -> None:
        """Refuse tensors or a configuration that are not those that were stored."""
        stored = self.quantization_config
        for part, checksum in file_checksums(files).items():
            if checksum != stored.checksums.get(part):
                raise ValueError(
                    f"{part} of the quantized model: damaged or altered, these are not the tensors "
                    f"that were stored"
                )
        if stored.model_config is not None:
            require_recorded(stored.model_config, model.config, files[0].parent / "config.json")
        require_sensible_files(files, Recipe.from_dict(stored.recipe))

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        """Read what older releases stored under other names; what is saved gets today's.

        transformers before 5.20 does not say of which model.
        """
        renamings = [WeightRenaming(old, new) for old, new in OLD_SITE_NAMES.items()]
        return [*super().update_weight_conversions(weight_conversions, *model), *renamings]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model._weight_conversions = [
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or []
            if not set(conversion._original_source_patterns) & OLD_SITE_NAMES.keys()
        ]
        for module in model.modules():
            if isinstance(module, AttentionQuantizer):
                module.compute_hadamard()
        set_execution(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What ``save_pretrained`` writes, and no metadata; the configuration gets its checksums.

        A loaded model may have been cast, and what is on the disk is read again, tensor by tensor.
        """
        state = remove_tied_weights_from_state_dict(model.state_dict(), model)

        def read(name: str) -> Tensor:
            tensor: Tensor = state[name]
            return load_offloaded_parameter(model, name) if tensor.is_meta else tensor

        config = model.config.quantization_config
        config.checksums = {RECIPE: recipe_checksum(config.recipe), **part_checksums(state, read)}
        config.model_config = config_record(model.config)
        config.format_version = FORMAT_VERSION
        setattr(model.config, NOTICE_FIELD, NOTICE)  # for who reads the file
        return state, {}


def set_execution(
    model: nn.Module,
    backend: Backend = "auto",
    weights_in_memory: WeightsInMemory = "fast",
) -> str:
    """Choose how a loaded model computes; see :class:`duquant.nn.execution.Execution`.

    What is faster on this machine is measured once for each kind of linear (on processors in less
    than a second) and kept in the user's cache directory; ``DUQUANT_MEASURE=0`` does without.

    Args:
        model: a quantized model.
        backend: ``auto``, ``reference`` or ``integer``.
        weights_in_memory: ``fast`` or ``packed``.

    Returns:
        What runs, in words; the log says it too, at level ``INFO``.

    Raises:
        ValueError: for an unknown choice, or integers where they cannot run.
    """
    execution, blocks = Execution(backend, weights_in_memory), _blocks(model)
    configure_execution(blocks, execution)
    how = describe_kernels(blocks)
    _say(how)
    return how


@functools.cache
def _say(how: str) -> None:
    logger.info("linears: %s", how)


def register() -> None:
    """Make ``quant_method: duquant`` known to transformers; calling again is harmless."""
    register_attention()
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = DuquantConfig
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = DuquantQuantizer


def _require_stored(model: Any, stored: Mapping[str, Tensor]) -> None:
    """Refuse what transformers would draw at random or report in a table."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    prefix = ""
    if model.base_model is model:  # loaded without its head, which is no tensor too many
        prefix = BASE
        model._keys_to_ignore_on_load_unexpected |= {rf"^{re.escape(HEAD)}"}
    for own_name, parameter in model.named_parameters():
        name = prefix + own_name
        if name not in stored:
            if name in tied:
                continue
            raise ValueError(f"the quantized model lacks {name}")
        if stored[name].shape != parameter.shape:
            raise ValueError(
                f"the quantized model's {name} has shape {tuple(stored[name].shape)}; config.json "
                f"asks for {tuple(parameter.shape)}"
            )


def _with_full_names(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names they have in a model with a head, whichever was saved."""
    return {name: stored[as_stored] for name, as_stored in full_names(stored).items()}


def _blocks(model: Any) -> list[nn.Module]:
    return list(model.get_decoder().layers)
