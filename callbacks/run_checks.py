"""What must hold before a fit goes on: all processes do one run, finished blocks are whole."""

import torch
from lightning import Trainer

from callbacks.block_events import BlockRecord
from duquant.modules.language_model import LanguageModel
from duquant.ops.process_memory import peak_resident_bytes
from duquant.processes import Processes


def require_one_run(trainer: Trainer, model: LanguageModel, processes: Processes) -> None:
    """Check that all processes see one directory and do the same.

    Raises:
        ValueError: if they do not.
    """
    begun = (model.output_dir / "run.json").is_file()
    state = f"{begun} {trainer.ckpt_path is None} {model.block_index} {model.run_description}"
    processes.require_same(
        [state],
        f"give all the same command and an --output_dir that all of them see "
        f"({model.output_dir} is not)",
    )


def require_finished_blocks(model: LanguageModel) -> None:
    """Check that what was calibrated before is still there, undamaged.

    Raises:
        ValueError: naming the file and the remedy.
    """
    finished = min(model.block_index, model.num_blocks)
    BlockRecord.load_all(model.output_dir, finished)
    for index in range(finished):
        try:
            model.directory.require_block(index, model.decoder)
        except ValueError as error:
            raise ValueError(
                f"{error}; a finished block is not computed again: put its file back, or start "
                f"anew in another --output_dir"
            ) from error


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: on the accelerator where there is one, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()
