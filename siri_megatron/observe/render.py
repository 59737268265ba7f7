"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO
from itertools import pairwise

from rich.console import Console, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
UNKNOWN = "–"


def text(renderable: RenderableType, width: int = 110) -> str:
    """A rich renderable as plain text, for logs and files."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def say(console: Console, line: str) -> None:
    """Print a line as it stands: brackets in a path are no markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def percent(share: float | None) -> str:
    """0.7125 -> `71.2%`."""
    return UNKNOWN if share is None else f"{share:.1%}"


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}{unit}"


def rate(per_second: float | None) -> str:
    """8123.0 -> `8.1k/s`."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second / 1000:.1f}k/s" if per_second >= 1000 else f"{per_second:.0f}/s"


def duration(seconds: float | None) -> str:
    """3671.0 -> `1:01:11`."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: Sequence[float | None], width: int = 48) -> str:
    """The values as a row of at most `width` blocks from the lowest to the highest; means where there are more."""
    known = [value for value in values if value is not None]
    columns = min(width, len(known))
    edges = [len(known) * column // columns for column in range(columns + 1)] if columns else []
    means = [math.fsum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((mean - low) / (high - low) * top) if high > low else 0] for mean in means)
