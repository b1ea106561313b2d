#!/usr/bin/env python
"""The command line: ``python cli.py fit|validate -c CONFIG …``, ``python cli.py evaluate …``.

LightningCLI turns the typed signatures of :class:`LanguageModel`, :class:`CalibrationDataModule`
and Lightning's ``Trainer`` into options and YAML keys. This file only names the subcommands and
links what belongs together: one ``--output_dir``, one ``--data.seed``, one ``--model.pretrained``.
Subcommands that need no Trainer are typed functions of their own, see :data:`SUBCOMMANDS`.
"""

from callbacks.early_interrupt import end_guard, guard_imports

if __name__ == "__main__":
    guard_imports()

import gc
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

gc.disable()  # what imports make stays: looking through it for garbage costs more than a second
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's, not ours
os.environ.setdefault("JSONARGPARSE_ADD_PRINT_COMPLETION_ARGUMENT", "true")

from callbacks.extra_guard import CALIBRATE, EXTRAS, leave_without_extra

leave_without_extra(sys.argv[1:])

from jsonargparse import ActionYesNo
from lightning import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from callbacks import help_texts, trainer_options
from callbacks.accelerator import usable_accelerator
from callbacks.checkpointing import DurableCheckpointIO, require_calibrated
from callbacks.data_parallel import STRATEGIES, BlockParallel, processes_of, require_even_shares
from callbacks.defaults import default_callbacks, default_logger
from callbacks.endings import one_line_endings
from callbacks.expected_warnings import EXPECTED_WARNINGS
from callbacks.one_line_parser import OneLineParser
from callbacks.run_directory import SaveRunConfig, is_finished, prepare_fit, prepare_validation
from callbacks.run_summary import results_of, show_finished
from callbacks.writer_thread import quiet_writer_threads
from duquant import __version__
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.command import Evaluate
from duquant.evaluation.mt_bench import commands as mt_bench
from duquant.evaluation.mt_bench.answer_command import answer
from duquant.export.command import export
from duquant.extras import require_extra
from duquant.json_output import one_document
from duquant.modules.language_model import LanguageModel
from duquant.reporting.report import report
from duquant.run_lock import RunLock
from duquant.subcommands import PlainHelp, Subcommands, add_subcommand_table, run_subcommand
from duquant.user_paths import expand_all
from duquant.write_errors import naming_full_disks

gc.freeze()
gc.enable()

MT_BENCH: Subcommands = {"answer": answer, "judge": mt_bench.judge, "show": mt_bench.show}
SUBCOMMANDS: Subcommands = {
    "evaluate": Evaluate,
    "export": export,
    "mtbench": MT_BENCH,
    "report": report,
}
"""Subcommands without a Trainer: a function whose signature and docstring are the options, or a
table of further subcommands. Its module imports what is slow inside of the function."""


class DuQuantCLI(LightningCLI):
    """Fit and validate a :class:`LanguageModel`."""

    stored_results: Mapping[str, Any] = {}  # of a run that was finished before

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's two subcommands and the arguments that are not options."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        parser.add_argument("--version", action="version", version=f"duquant {__version__}")
        super()._add_subcommands(parser, **kwargs)
        chooser = parser._subcommands_action
        assert chooser is not None
        for choice in chooser._choices_actions:
            choice.help = help_texts.DESCRIPTIONS[choice.dest]
        add_subcommand_table(chooser, SUBCOMMANDS, help_texts.TABLES, OneLineParser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and put home directories into every path."""
        super().parse_arguments(parser, args)
        try:
            self.config = expand_all(self.config)
        except ValueError as error:
            parser.error(str(error))

    def _parse_ckpt_path(self) -> None:
        """Take no options out of a checkpoint: :func:`prepare_fit` compares, and refuses."""

    def _set_seed(self) -> None:
        if self.subcommand not in SUBCOMMANDS:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build model, data and trainer where the subcommand has them."""
        if self.subcommand not in SUBCOMMANDS:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in SUBCOMMANDS:
            require_extra(EXTRAS.get(subcommand, CALIBRATE), f"cli.py {subcommand}")
            options = self.parser.instantiate_classes(self.config)
            run_subcommand(SUBCOMMANDS[subcommand], options[subcommand])
        else:
            with (
                one_document(self.config[subcommand].json) as document,
                RunLock(self.model.output_dir, self.trainer.is_global_zero) as self.lock,
                naming_full_disks(self.model.output_dir),
                quiet_writer_threads(),
            ):
                super()._run_subcommand(subcommand)
                document.update(self.stored_results or results_of(self.trainer))

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options, ours before the Trainer's hundred."""
        parser.add_lightning_class_args(LanguageModel, "model")
        parser.add_lightning_class_args(CalibrationDataModule, "data")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": v for key, v in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory and link what must agree."""
        parser.add_argument(
            "--output_dir",
            type=str,
            default="runs/duquant",
            help="The run's directory: configuration, checkpoints, logs, and the quantized model.",
        )
        parser.add_argument("--json", action=ActionYesNo, default=False, help=help_texts.JSON)
        parser.link_arguments("output_dir", "model.output_dir")
        parser.link_arguments("output_dir", "trainer.default_root_dir")
        parser.link_arguments("model.pretrained", "data.tokenizer")
        parser.link_arguments("data.seed", "model.seed")
        parser.link_arguments("model.lwc.batch_size", "data.batch_size")
        help_texts.show_first(parser, "what most runs set", help_texts.OFTEN_CHANGED)

    def before_fit(self) -> None:
        """Check what can be checked, and continue an unfinished run of this configuration."""
        metric = trainer_options.lasting_metric(self.model.recipe)
        trainer_options.require_supported(self.trainer, "fit", metric=metric)
        require_even_shares(self.trainer, self.model, self.datamodule)
        self.datamodule.processes = processes_of(self.trainer)
        arguments, is_owner = self.config_init["fit"], self.trainer.is_global_zero
        given = arguments["ckpt_path"]
        if prepare_fit(self.model, self.datamodule, given, is_owner=is_owner, lock=self.lock):
            arguments["ckpt_path"] = "last"

    def fit(self, **kwargs: Any) -> None:
        """Calibrate, then measure; a run that is already finished is only reported."""
        if is_finished(self.model):
            if self.trainer.is_global_zero:
                self.stored_results = show_finished(self.model, self.datamodule)
            return
        self.trainer.fit(**kwargs)
        require_calibrated(self.model)
        if self.datamodule.validation:
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def validate(self, **kwargs: Any) -> None:
        """Measure, and leave the table to the run summary."""
        self.trainer.validate(**kwargs, verbose=False)

    def before_validate(self) -> None:
        """Check that there is a finished run to measure."""
        prepare_validation(self.model, self.datamodule, self.lock)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        output_dir = Path(self._get(self.config_init, "output_dir"))
        if self.subcommand == "fit":
            trainer_options.require_effective(config)
        config["accelerator"] = usable_accelerator(config["accelerator"])
        if config["logger"] in (None, True):
            config["logger"] = default_logger(output_dir)
        config["plugins"] = [*(config["plugins"] or []), DurableCheckpointIO()]
        if config["strategy"] in STRATEGIES:
            config["strategy"] = BlockParallel()
        ours = default_callbacks(
            output_dir,
            with_progress=config["enable_progress_bar"] is not False,
            with_checkpoints=config["enable_checkpointing"] is not False,
        )
        with trainer_options.building_a_trainer():
            return super()._instantiate_trainer(config, [*callbacks, *ours])


def build() -> DuQuantCLI:
    """Parse the command line, build what it names, and run its subcommand."""
    return DuQuantCLI(
        LanguageModel,
        CalibrationDataModule,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={
            "devices": 1,
            "reload_dataloaders_every_n_epochs": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
        seed_everything_default=False,
        parser_class=OneLineParser,
        parser_kwargs={
            "description": help_texts.ABOUT,
            "epilog": help_texts.STATUSES,
            "formatter_class": PlainHelp,
            **help_texts.SUBPARSERS,
        },
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def main() -> None:
    """Run the command line; mistakes of the user end in one line and status 2."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    with one_line_endings():
        end_guard()
        help_texts.explain_if_bare(sys.argv[1:])
        build()


if __name__ == "__main__":
    main()
