"""Text from elsewhere, made safe to show.

Names of models, corpora and tasks come from files and servers that others wrote. Shown as they are,
they could move the cursor of a terminal, turn the order of its letters around, or put HTML and
links into a report. :func:`plain` is for every place; :func:`in_markdown` is for Markdown on top.
HTML is escaped by its templates.
"""

import re

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
"""Not by a backslash: readers of Markdown let HTML through before they look for any."""
MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
"""What opens or closes something in Markdown; an underscore inside of a word does not."""
STARTS = re.compile(r"^(\d{1,9}(?=[.)](?: |$))|(?=[-+](?:[- ]|$)|[#=]))")
"""What makes a line a list, a heading or a rule."""


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


def _named(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
