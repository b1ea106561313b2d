"""What the command line says of itself: usage, the options shown first, and the first steps."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from duquant.terminal import complain, note

ABOUT = "Quantize language models to few bits by DuQuant, and measure what it costs."
STATUSES = (
    "Exit status: 0 finished; 2 bad input, or a disk or another process failed; 130 Control-C; "
    "143 SIGTERM; 1 a bug. callbacks/README.md says more."
)
DESCRIPTIONS = {
    "fit": "Calibrate a model block by block, write it quantized, and measure its perplexity.",
    "validate": "Measure the perplexity of a finished run's model beside the original's.",
}
SUBPARSERS = {
    "fit": {
        "description": DESCRIPTIONS["fit"],
        "usage": "python cli.py fit -c RECIPE.yaml --model.pretrained MODEL [--OPTION VALUE ...]",
    },
    "validate": {
        "description": DESCRIPTIONS["validate"],
        "usage": "python cli.py validate -c RUN/config.yaml [--OPTION VALUE ...]",
    },
}
"""What the parsers of Lightning's subcommands are built with."""
JSON = "Print the results as one JSON document, and all else on standard error."
TABLES = {"mtbench": "Let a model answer MT-Bench's questions, have them judged, show the scores."}
"""What a subcommand is about that is a table of further ones."""

OFTEN_CHANGED = (
    "--config",
    "--model.pretrained",
    "--output_dir",
    "--model.weight_bits",
    "--model.activation_bits",
    "--model.rotation.block_size",
    "--data.calibration",
    "--data.num_samples",
    "--data.sequence_length",
    "--data.validation",
)
"""Ten options that most runs set."""

START = """no subcommand was given; for a start:
  python cli.py fit -c configs/quickstart.yaml                    a small model that comes along
  python cli.py fit -c configs/w4a4.yaml --model.pretrained MODEL   your own: directory or hub id
  python cli.py report runs/duquant                               what a run measured, on one page
python cli.py --help lists the subcommands, python cli.py fit --help all options of fit"""
START_OF_FIT = """no options were given; fit needs a model, and usually a recipe:
  python cli.py fit -c configs/quickstart.yaml                    a small model that comes along
  python cli.py fit -c configs/w4a4.yaml --model.pretrained MODEL   your own: directory or hub id
The recipes are in configs/. The result goes to runs/duquant, or where --output_dir says.
python cli.py fit --help begins with the ten options that are changed most often"""
FIRST_STEPS = {(): START, ("fit",): START_OF_FIT}
"""What to say where nothing else was given."""


def explain_if_bare(arguments: Sequence[str]) -> None:
    """Leave with status 2 and a few lines of help where there is nothing to parse.

    Args:
        arguments: of the command line, without the program.
    """
    text = FIRST_STEPS.get(tuple(arguments))
    if text is None:
        return
    first, *others = text.splitlines()
    complain(first)
    for line in others:
        note(line)
    raise SystemExit(2)


def show_first(parser: ArgumentParser, title: str, options: Sequence[str]) -> None:
    """Let the help show some options in a group of their own, before all others.

    How they are parsed does not change: argparse's groups only arrange the help.
    """
    first = parser.add_argument_group(title)
    for option in options:
        action = parser._option_string_actions[option]
        for group in parser._action_groups:
            if action in group._group_actions:
                group._group_actions.remove(action)
        first._group_actions.append(action)
    others = [group for group in parser._action_groups if group is not first]
    parser._action_groups = [first, *others]
