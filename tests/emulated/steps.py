"""Scenarios that count what training steps ask of the emulated device."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning import Callback
from torch import Tensor

import duquant
from callbacks import preflight
from callbacks.defaults import default_callbacks, default_logger
from callbacks.run_directory import prepare_fit
from duquant import quantization
from duquant.data import stream_pass
from duquant.modules.block import QuantBlock
from tests.emulated import device
from tests.emulated.counts import Counts, counting
from tests.emulated.scenarios import DEVICE, DISTILLATION, LWC, Facts, scenario, sources
from tests.in_process import (
    LEARNS_ALL,
    NO_LWC,
    ROTATION,
    small_data,
    small_language_model,
    small_trainer,
)

THREE_EPOCHS = dataclasses.replace(LWC, epochs=3)


class Meter(Callback):
    """Counts what is asked of the device between the first and the last step of an epoch.

    In the last epoch as on a GPU with Triton.

    Attributes:
        epochs: totals of each epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[Facts] = []
        self._stack = contextlib.ExitStack()
        self._counts = Counts()

    def on_train_epoch_start(self, fit: Any, module: Any) -> None:
        self._counts = self._stack.enter_context(counting())
        if fit.current_epoch + 1 == fit.max_epochs:
            self._stack.enter_context(device.triton_kernels())

    def on_train_batch_end(self, fit: Any, module: Any, outputs: Any, batch: Any, idx: int) -> None:
        if idx + 1 == fit.num_training_batches:
            self._stack.close()
            turn = "distillation" if module.is_distilling else "block"
            steps = fit.num_training_batches
            self.epochs.append({"turn": turn, "steps": steps, **self._counts.totals()})


def measured(folder: Path, **recipe: Any) -> list[Facts]:
    """Totals of the epochs of a fit with all that a command has."""
    source, text = sources(folder, blocks=1)
    meter, output = Meter(), folder / "run"
    model = small_language_model(source, output, **{"lwc": THREE_EPOCHS, **recipe})
    data = small_data(source, text)
    prepare_fit(model, data, None)
    fit = small_trainer(
        *default_callbacks(output), meter, logger=default_logger(output), accelerator=device.NAME
    )
    fit.fit(model, datamodule=data)
    return meter.epochs


@scenario
def steps(folder: Path) -> Facts:
    """Steps of blocks and of the whole model."""
    return {
        "LWC": measured(folder / "lwc"),
        "everything": measured(folder / "all", **{**LEARNS_ALL, "lwc": THREE_EPOCHS}),
        "distillation": measured(
            folder / "whole", lwc=NO_LWC, distillation=dataclasses.replace(DISTILLATION, epochs=3)
        ),
    }


@scenario
def steps_from_the_host(folder: Path) -> Facts:
    """Steps of blocks and of the whole model whose streams lie in the host's memory."""
    with mock.patch.object(preflight, "with_streams_placed", lambda job, free: job):
        return {
            "LWC": measured(folder / "lwc"),
            "distillation": measured(folder / "whole", lwc=NO_LWC, distillation=DISTILLATION),
        }


@scenario
def a_step_that_waits(folder: Path) -> Facts:
    """The same with one ``.item()`` in the loss of a block."""
    loss = QuantBlock.loss

    def waiting(self: QuantBlock, batch: Any) -> Tensor:
        value = loss(self, batch)
        value.item()
        return value

    QuantBlock.loss = waiting  # type: ignore[method-assign]
    return {"LWC": measured(folder)}


@scenario
def a_step_that_is_not_finite(folder: Path) -> Facts:
    """Training with a bad batch, and without it: parameters, moments, and the count of steps."""
    source, text = sources(folder, blocks=1)
    output = folder / "model"
    found: list[Any] = []
    train = quantization._train

    def twice(learner: QuantBlock, samples: Any, settings: Any, place: torch.device) -> None:
        batches = [samples.batch(range(index, index + 2)) for index in (0, 2)]
        bad = batches[1]._replace(quantized_input=batches[1].quantized_input * float("nan"))
        start = {name: value.clone() for name, value in learner.state_dict().items()}
        for given in ([batches[0], bad, batches[1]], [batches[0], batches[1]]):
            learner.load_state_dict(start)
            optimizer = learner.configure_optimizers()
            for batch in given:
                learner.training_step(
                    type(batch)(*(part.to(place) for part in batch)), 0
                ).backward()
                learner.drop_unusable_step(optimizer)
                optimizer.step()
                optimizer.zero_grad()
            moments = [v for each in optimizer.state.values() for v in each.values()]
            held = [each.cpu().clone() for each in (*learner.parameters(), *moments)]
            found.append((held, int(learner.skipped_steps)))
        train(learner, samples, settings, place)

    quantization._train = twice
    recipe = duquant.Recipe(rotation=ROTATION, lwc=LWC)
    options = {"num_samples": 4, "sequence_length": 16, "device": DEVICE}
    duquant.quantize(source, text.read_text(), recipe, output_dir=output, **options)
    (with_bad, skipped), (without, none) = found
    return {
        "skipped": [skipped, none],
        "equal": all(map(torch.equal, with_bad, without)),
        "tensors": len(without),
    }


@scenario
def chunks(folder: Path) -> Facts:
    """Waits of two blocks whose streams pass in 4 chunks and in 8; nothing learns."""
    source, text = sources(folder, blocks=2)
    stream_pass.TOKENS_AT_ONCE = 16
    recipe, waits = duquant.Recipe(rotation=ROTATION, lwc=NO_LWC), []
    for count in (4, 8):
        options = {"num_samples": count, "sequence_length": 16, "device": DEVICE}
        with counting() as counts:
            duquant.quantize(
                source, text.read_text(), recipe, output_dir=folder / str(count), **options
            )
        waits.append(counts.totals()["waits"])
    return {"waits": waits}
