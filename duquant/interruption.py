"""Control-C: an interruption of which somebody was told already."""


class ToldInterrupt(KeyboardInterrupt):
    """Control-C, after a line that says how to continue; nobody needs to say so again."""
