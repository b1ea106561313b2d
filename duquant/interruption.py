"""What ends a command early: how it goes on, and Control-C of which somebody was told already."""

import sys

FIT_CONTINUES = "the same command with --ckpt_path last continues"
CONTINUES = {
    "fit": FIT_CONTINUES,
    "validate": "nothing of a measurement is kept, the same command measures anew",
}
"""How a subcommand goes on after it was stopped."""


class ToldInterrupt(KeyboardInterrupt):
    """Control-C, after a line that says how to continue; nobody needs to say so again."""


def how_to_continue() -> str:
    """How this process's own command goes on, by its first word; without one, as a fit does."""
    return CONTINUES.get("".join(sys.argv[1:2]), FIT_CONTINUES)
