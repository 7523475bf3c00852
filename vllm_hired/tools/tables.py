"""Rows as text that people and programs read."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def as_table(rows: Sequence[Row]) -> str:
    """Markdown, columns aligned; all rows have the first one's keys."""
    lines = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])
