"""Text from elsewhere, made safe to show.

Names of models, corpora and tasks come from files and servers that others wrote. Shown as they are,
they could move the cursor of a terminal, turn the order of its letters around, or put HTML and
links into a report. :func:`plain` is for every place; :func:`in_markdown` is for Markdown on top.
HTML is escaped by its templates. :func:`in_one_line` is for what libraries say of an error.
"""

import re

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
"""Not by a backslash: readers of Markdown let HTML through before they look for any."""
MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
"""What opens or closes something in Markdown; an underscore inside of a word does not."""
STARTS = re.compile(r"^(\d{1,9}(?=[.)](?: |$))|(?=[-+](?:[- ]|$)|[#=]))")
"""What makes a line a list, a heading or a rule."""
LONGEST_REASON = 200
"""Characters of a library's error that are quoted."""
TERSE = (LookupError, AttributeError, TypeError, AssertionError, ArithmeticError)
"""Errors whose text says too little: a missing key alone."""


def plain(text: object) -> str:
    r"""What can be printed stands as it is, everything else as in a Python literal.

    >>> plain("naïve – 模型"), plain("\x1b[31mred\n"), plain("\udc80\u202e")
    ('naïve – 模型', '\\x1b[31mred\\n', '\\udc80\\u202e')
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(sign if sign.isprintable() else _named(sign) for sign in words)


def in_markdown(text: object) -> str:
    r"""The same letters in Markdown, inside of a line or of a cell of a table.

    >>> in_markdown("<b>a|b</b> *c* d_e [f](g)")
    '&lt;b&gt;a\\|b&lt;/b&gt; \\*c\\* d_e \\[f\\](g)'
    """
    marked = MARKS.sub(r"\\\g<0>", plain(text))
    return re.sub("[&<>]", lambda found: ENTITIES[found[0]], marked)


def line_in_markdown(text: object) -> str:
    r"""The same letters as a line of their own.

    >>> line_in_markdown("# no heading"), line_in_markdown("1. no list"), line_in_markdown("1.5")
    ('\\# no heading', '1\\. no list', '1.5')
    """
    return STARTS.sub(r"\1\\", in_markdown(text).strip())


def in_one_line(error: BaseException) -> str:
    r"""What a library's error says, in one line, and not all of a long one.

    Its kind comes first where the text alone says too little, and the line where it is about YAML.

    >>> in_one_line(ValueError("no rows\n  in it")), in_one_line(KeyError("rows"))
    ('no rows in it', "KeyError 'rows'")
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {shortened(getattr(error, 'problem', None))}"
    text = " ".join(str(error).split())
    says_enough = text and not isinstance(error, TERSE)
    return shortened(text if says_enough else f"{type(error).__name__} {text}".strip())


def shortened(text: object, longest: int = LONGEST_REASON) -> str:
    """A text, cut off where it is long."""
    words = str(text)
    return words if len(words) <= longest else f"{words[:longest]}…"


def _named(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
