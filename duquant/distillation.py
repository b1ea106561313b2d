"""Between the finished model directory and :class:`~duquant.modules.distillation.Distillation`.

``callbacks/distillation_turn.py`` lets it learn within a fit, with checkpoints;
:func:`duquant.quantization.quantize` does so in a plain loop.
"""

from collections.abc import Sequence
from pathlib import Path

from duquant.atomic_files import write_tensors
from duquant.export.model_directory import ModelDirectory
from duquant.model.checkpoint import open_safetensors
from duquant.model.decoder import BlockContext, Decoder
from duquant.model.execution import configure_execution
from duquant.modules.distillation import Distillation
from duquant.nn.execution import Execution


def keep_start(distillation: Distillation, directory: ModelDirectory, file: Path) -> None:
    """Copy what will learn out of the blocks' files, before they are written once more."""
    values = {
        f"{index}.{name}": tensor
        for index, names in enumerate(distillation.names)
        for name, tensor in directory.read_tensors(index, names).items()
    }
    write_tensors(file, values)


def open_model(
    distillation: Distillation,
    directory: ModelDirectory,
    decoder: Decoder,
    contexts: Sequence[BlockContext],
    start: Path,
) -> None:
    """Read all finished blocks and let them learn, from the values in ``start`` or those held.

    Raises:
        ValueError: if a file is missing or damaged, naming it.
    """
    blocks = [
        directory.read_block(index, decoder).to(distillation.device)
        for index in range(decoder.num_blocks)
    ]
    configure_execution(blocks, Execution("reference", "packed"))
    with open_safetensors(start) as opened:
        stored = [
            {name: opened.get_tensor(f"{index}.{name}") for name in names}
            for index, names in enumerate(distillation.names)
        ]
    distillation.enter(blocks, stored, contexts, decoder)
