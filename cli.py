"""Command line: ``python cli.py fit|validate -c CONFIG …``."""

import sys

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from callbacks.block_progression import BlockProgression
from duquant.data.datamodule import CalibrationDataModule
from duquant.modules.language_model import LanguageModel


class DuQuantCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output_dir", default="runs/duquant")
        parser.link_arguments("output_dir", "model.output_dir")
        parser.link_arguments("output_dir", "trainer.default_root_dir")
        parser.link_arguments("model.pretrained", "data.tokenizer")
        parser.link_arguments("data.seed", "model.seed")
        parser.link_arguments("model.lwc.batch_size", "data.batch_size")

    def after_fit(self) -> None:
        self.trainer.validate(self.model, self.datamodule)


def main() -> None:
    DuQuantCLI(
        LanguageModel,
        CalibrationDataModule,
        trainer_class=Trainer,
        trainer_defaults={
            "callbacks": [BlockProgression()], "reload_dataloaders_every_n_epochs": 1,
            "num_sanity_val_steps": 0},
        seed_everything_default=False,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


if __name__ == "__main__":
    main()
