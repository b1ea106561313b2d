"""A report in Markdown: its tables, for a pull request or an issue."""

from collections.abc import Sequence

from duquant.plain_text import in_markdown, line_in_markdown
from duquant.reporting.tables import Table


def as_markdown(title: str, tables: Sequence[Table]) -> str:
    """Tables one below the other; every text in them stands as it is, whatever signs it has."""
    parts = [f"# {in_markdown(title)}"]
    title = ""
    for table in tables:
        if table.title != title:
            title = table.title
            parts.append(f"## {in_markdown(title)}")
        if table.notes:
            parts.append("  \n".join(map(line_in_markdown, table.notes)))
        if table.folded:
            parts.append(f"### {in_markdown(table.folded)}")
        if not table.rows:
            continue
        lines = [map(in_markdown, table.columns), ["---"] * len(table.columns)]
        lines += [map(in_markdown, row) for row in table.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
