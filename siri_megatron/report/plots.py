"""The figures of a page as SVG and PNG, and the tables behind them as CSV: for papers and slides."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from siri_megatron.files import write_text
from siri_megatron.report import style
from siri_megatron.report.marks import Figure, Tables
from siri_megatron.report.page import Page

WIDTH = 640
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SCALE = 2.0
"""PNG pixels a point."""


def write_plots(page: Page, directory: Path) -> int:
    """Write `NAME.svg` and `NAME.png` of each figure and `NAME.csv` of each table; returns the number of files."""
    import vl_convert

    directory.mkdir(parents=True, exist_ok=True)
    drawn = [figure for section in page.sections for figure in section.figures]
    for figure in drawn:
        spec = plain_spec(figure, page.data)
        write_text(directory / f"{figure.name}.svg", vl_convert.vegalite_to_svg(spec))
        (directory / f"{figure.name}.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=SCALE))
    filled = {name: rows for name, rows in page.data.items() if rows}
    for name, rows in filled.items():
        write_text(directory / f"{name}.csv", csv_text(rows))
    return 2 * len(drawn) + len(filled)


def plain_spec(figure: Figure, data: Tables) -> dict[str, Any]:
    """A figure by itself: of fixed width, dark on white, with its title and data."""
    height = {} if "height" not in figure.spec else {"height": figure.spec["height"]}
    return {**figure.spec, **height, "width": WIDTH, "title": figure.title,
            "datasets": {name: data[name] for name in figure.tables},
            "config": style.config(style.DARK_INK, style.PAPER, FONT)}


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with the columns of all of them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
