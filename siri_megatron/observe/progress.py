"""The live display of a run: a panel in a terminal, plain lines elsewhere.

It runs in the supervisor, which tails metrics.jsonl and events.jsonl (`jsonl.Tailer`) and passes on what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siri_megatron.observe.progress_state import ProgressState, event_line
from siri_megatron.observe.render import sparkline

LOUD = ("zero_signal", "short_step", "verifier_alarm", "warning", "failure")
"""Kinds of events that are shown in red."""
CURVES = (("cap", "cap"), ("accuracy", "accuracy"), ("mean_tokens", "tokens"))
_DIGITS = re.compile(r"\d+")


class Progress:
    """Shows a run (`launch.display.Display`). Close it, or use it as a context manager, to restore the terminal.

    Args:
        state: what is known at the start.
        console: where to draw; a console without a terminal gets one plain line a step, event, and kind of status.
    """

    def __init__(self, state: ProgressState, console: Console | None = None) -> None:
        self.state = state
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._said: set[str] = set()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last panel standing and the terminal as it was."""
        if self._live:
            self._live.stop()

    def resume(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in the steps of an earlier session without announcing them."""
        for record in records:
            self.state.record(record)
        self._draw()

    def record(self, record: Mapping[str, Any]) -> None:
        """Metrics of a step."""
        self.state.record(record)
        self._say(self.state.line())

    def event(self, event: Mapping[str, Any]) -> None:
        """Something happened."""
        self.state.event(event)
        self._say(event_line(event))

    def status(self, text: str) -> None:
        """What the run is doing now: 'starting engines', 'generating 34/128'.

        Without a terminal, each wording is said once (numbers apart), or the counts would flood the log.
        """
        if text == self.state.status:
            return
        self.state.status = text
        wording = _DIGITS.sub("#", text)
        if self._live or wording not in self._said:
            self._said.add(wording)
            self._say(text)

    def _say(self, line: str) -> None:
        if self._live:
            self._draw()
        else:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        if self._live:
            self._live.start()
            self._live.update(panel(self.state), refresh=True)


def panel(state: ProgressState) -> Panel:
    """The whole display."""
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=state.steps, completed=state.done, width=48), f"step {state.done}/{state.steps}")
    parts: list[RenderableType] = [Text(state.headline(), style="bold"), bar, _figures(state)]
    if len(state.records) > 1:
        parts.append(_curves(state))
    parts.extend(Text(_timed(event), style="red" if event["kind"] in LOUD else "dim") for event in state.events)
    if state.status:
        parts.append(Text(f"… {state.status}", style="cyan"))
    return Panel(Group(*parts), title=f"siri · {state.name}", title_align="left", width=96)


def _figures(state: ProgressState) -> Table:
    """Names and values in two rows of four."""
    grid = Table.grid(padding=(0, 3))
    figures = state.figures()
    for start in range(0, len(figures), 4):
        grid.add_row(*(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in figures[start:start + 4]))
    return grid


def _curves(state: ProgressState) -> Table:
    grid = Table.grid(padding=(0, 2))
    for key, name in CURVES:
        grid.add_row(Text(name, style="dim"), Text(sparkline(state.series(key), 72), style="green"))
    return grid


def _timed(event: Mapping[str, Any]) -> str:
    return f"{datetime.fromtimestamp(event['ts']):%H:%M:%S} {event_line(event)}"
