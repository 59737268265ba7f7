"""One static HTML file from a page's content: styles, scripts, figures and data inside, nothing from outside.

Invariants:
- self_contained: the file names no address that a browser would fetch, and its policy forbids every request.
- only_our_scripts: scripts run by their hash alone, so text of a run that looks like a script cannot run.
- data_is_text: every text of a run goes through autoescaping, or through JSON in which `<` cannot occur.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from siri_megatron import __version__
from siri_megatron.files import write_text
from siri_megatron.report import style
from siri_megatron.report.advise import Advice
from siri_megatron.report.marks import Figure, Tables
from siri_megatron.report.text import all_visible, visible

SNIPPET = "window.vegaEmbed = vegaEmbed;"
DIGITS = 6
"""Significant digits of numbers in figures."""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of ready texts. texts: columns that are words; strong: rows that are set off."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    texts: Sequence[int] = (0,)
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Source:
    """A long text that is shown when asked for."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    name: str
    heading: str
    intro: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    advice: Sequence[Advice] = ()
    sources: Sequence[Source] = ()
    searchable: bool = False


@dataclass(frozen=True)
class Page:
    title: str
    state: str
    lead: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    data: Tables
    samples: Sequence[Mapping[str, Any]] = field(default=())


def render(page: Page, now: datetime | None = None) -> str:
    """The file's text."""
    script = _file("page.js")
    library = javascript()
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown)
    return environment.from_string(_file("page.html")).render(
        page.__dict__ | {"data": Markup(page_data(page)), "css": Markup(_file("page.css")),
                         "library": Markup(library), "script": Markup(script), "policy": policy(library, script),
                         "version": __version__, "date": f"{now or datetime.now():%Y-%m-%d %H:%M}"})


def _shown(value: Any) -> Any:
    """What stands in the file for a value: texts of a run become visible, our own markup stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page_data(page: Page) -> str:
    """The JSON that the page's script reads."""
    drawn = [figure for section in page.sections for figure in section.figures]
    needed = dict.fromkeys(name for figure in drawn for name in figure.tables)
    shown = [{"name": figure.name, "spec": figure.spec, "tables": figure.tables,
              "description": f"{figure.title}. {figure.caption}"} for figure in drawn]
    content = {"figures": shown, "tables": {name: columns(page.data[name]) for name in needed},
               "samples": page.samples, "config": style.config()}
    text = json.dumps(all_visible(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns of short numbers: a third of the size."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {"length": len(rows), "columns": {name: [short(row.get(name)) for row in rows] for name in names}}


def short(value: Any) -> Any:
    """A number with `DIGITS` significant digits; None for one that is not finite."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def policy(*scripts: str) -> str:
    """The page's content security policy: no request at all, and no script but these."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
                      for script in scripts)
    return (f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
            "form-action 'none'")


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed, of the versions that vl-convert carries; the page calls `vegaEmbed`.

    Bundling them takes more time than all the rest of a page, so the bundle is kept in the user's cache.
    """
    import vl_convert

    kind = hashlib.sha256(f"{vl_convert.__version__} {SNIPPET}".encode()).hexdigest()[:16]
    kept = Path("~/.cache/siri-megatron").expanduser() / f"vega-{kind}.js"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    made = str(vl_convert.javascript_bundle(SNIPPET)).replace("</script", "<\\/script")
    with suppress(OSError):
        write_text(kept, made)
    return made


def _file(name: str) -> str:
    return (files("siri_megatron.report") / name).read_text(encoding="utf-8")
