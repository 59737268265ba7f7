"""Draw the pictures of docs/controller.md from the code: docs/pictures/schedules.svg and closed-loop.svg.

    python tools/draw_schedules.py           write them
    python tools/draw_schedules.py --check   exit 1 if schedules.svg is out of date

The closed loop is drawn in the simulated world of its tests (tests/budget/simulated_learner.py), beside a cosine within
the same limits. SVG is written directly: a picture is a few panels of lines, and needs no drawing library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import BudgetConfig

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT, MARGIN, GAP = 270, 96, 46, 40
BLUE, ORANGE, GREY, SHADE = "#1f5fa8", "#c8641b", "#666666", "#e6eef7"


@dataclass(frozen=True)
class Line:
    """One curve of a panel: a value a step."""

    values: Sequence[float]
    colour: str = BLUE
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """A plot: curves over the steps, compression phases shaded, lines where a phase ends."""

    title: str
    lines: Sequence[Line]
    low: float
    high: float
    budgets: Sequence[StepBudget] = ()

    def svg(self, x: float, y: float) -> str:
        top = f'<text x="{x}" y="{y - 8}" font-weight="bold">{self.title}</text>'
        box = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="{GREY}"/>'
        labels = "".join(
            f'<text x="{x - 4}" y="{y + HEIGHT * (1 - share) + 4}" text-anchor="end" fill="{GREY}">{value:.0f}</text>'
            for share, value in ((0, self.low), (1, self.high)))
        steps = len(self.lines[0].values)
        axis = (f'<text x="{x + WIDTH}" y="{y + HEIGHT + 13}" text-anchor="end" fill="{GREY}">{steps} steps</text>')
        return "\n".join([top, *self._phases(x, y), box, labels, axis, *self._curves(x, y), *self._legend(x, y)])

    def _curves(self, x: float, y: float) -> list[str]:
        drawn = []
        for line in self.lines:
            across = WIDTH / len(line.values)
            up = [y + HEIGHT * (1 - (value - self.low) / (self.high - self.low)) for value in line.values]
            stairs = thinned([(x + across * (step + side), at) for step, at in enumerate(up) for side in (0, 1)])
            points = " ".join(f"{right:.1f},{down:.1f}" for right, down in stairs)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="1.4"/>')
        return drawn

    def _phases(self, x: float, y: float) -> list[str]:
        """A shaded column for every compression phase."""
        across, start, columns = WIDTH / max(1, len(self.budgets)), 0, []
        for (_, phase), members in groupby(self.budgets, lambda budget: (budget.cycle, budget.phase)):
            steps = len(list(members))
            if phase == "compression":
                columns.append(f'<rect x="{x + across * start:.1f}" y="{y}" width="{across * steps:.1f}" '
                               f'height="{HEIGHT}" fill="{SHADE}"/>')
            start += steps
        return columns

    def _legend(self, x: float, y: float) -> list[str]:
        named = [line for line in self.lines if line.name]
        return [f'<text x="{x + WIDTH - 50 * place}" y="{y - 8}" text-anchor="end" fill="{line.colour}">'
                f"{line.name}</text>" for place, line in enumerate(reversed(named))]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points that nobody could tell from the one before: thousands of steps, a few hundred pixels."""
    kept = [points[0]]
    for point in points[1:-1]:
        if max(abs(point[0] - kept[-1][0]), abs(point[1] - kept[-1][1])) >= 1:
            kept.append(point)
    return [*kept, points[-1]]


def page(panels: Sequence[Panel], columns: int) -> str:
    """Panels in rows, as one SVG document."""
    rows = -(-len(panels) // columns)
    size = (MARGIN + columns * (WIDTH + MARGIN) - 24, GAP + rows * (HEIGHT + GAP))
    body = [panel.svg(MARGIN + (at % columns) * (WIDTH + MARGIN), 30 + (at // columns) * (HEIGHT + GAP))
            for at, panel in enumerate(panels)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="11">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>', *body, "</svg>", ""])


def open_loop(title: str, **changes: Any) -> Panel:
    """A panel of the caps that a configuration gives; the paper's bounds unless told."""
    base = {} if changes["schedule"] == "staged" else {"cycle_steps": 640, "cycles": 3}
    config = BudgetConfig(**{"l_min": 8192, "l_max": 16384, **base, **changes})
    controller = controller_of(config, grid=())
    budgets = [controller.budget(step) for step in range(controller.steps)]
    return Panel(title, [Line([budget.cap for budget in budgets])], 0, config.l_max, budgets)


def schedules() -> str:
    deepscaler = ((1040, 8192), (480, 16384), (230, 24576))
    fastcurl = ((160, 8192), (590, 16384), (230, 24576), (580, 16384), (400, 16384))
    return page([
        open_loop("cosine", schedule="cosine"),
        open_loop("stair", schedule="stair"),
        open_loop("stair_cosine", schedule="stair_cosine"),
        open_loop("linear", schedule="linear"),
        open_loop("constant", schedule="constant"),
        open_loop("cosine, compression_steps=200", schedule="cosine", compression_steps=200),
        open_loop("cosine, hold_steps=320", schedule="cosine", hold_steps=320),
        open_loop("cosine, ranges fall", schedule="cosine", l_min=4096,
                  ranges=((8192, 16384), (6144, 12288), (4096, 10240))),
        open_loop("linear, ranges grow", schedule="linear", l_min=4096, l_max=24576,
                  ranges=((4096, 8192), (6144, 16384), (8192, 24576))),
        open_loop("staged, as DeepScaleR", schedule="staged", l_max=24576, stages=deepscaler),
        open_loop("staged, up and down", schedule="staged", l_max=24576, stages=fastcurl),
    ], columns=3)


def closed_loop() -> str:
    """Cap, truncation, accuracy and length of a closed loop, and of a cosine within the same limits."""
    panels: list[Panel] = []
    runs = {schedule: simulate(schedule) for schedule in ("closed", "cosine")}
    for schedule, (budgets, _) in runs.items():
        panels.append(Panel(f"{schedule}: cap", [Line([budget.cap for budget in budgets])], 0, 128, budgets))
    for key, title, top in (("truncated", "share truncated at the cap", 1), ("accuracy", "accuracy at 128 tokens", 1),
                            ("tokens", "mean tokens at 128", 80)):
        lines = [Line(runs[name][1][key], colour, name) for name, colour in (("closed", BLUE), ("cosine", ORANGE))]
        panels.append(Panel(title, lines, 0, top))
    return page(panels, columns=2)


def simulate(schedule: str) -> tuple[list[StepBudget], dict[str, list[float]]]:
    sys.path.insert(0, str(ROOT / "tests" / "budget"))
    from simulated_learner import SimulatedLearner

    grid = (32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
    config = BudgetConfig(schedule=schedule, l_min=32, l_max=128, cycle_steps=96, cycles=4)
    world, controller = SimulatedLearner(1, grid), controller_of(config, grid=grid)
    budgets, series = [], {"truncated": [], "accuracy": [], "tokens": []}
    for step in range(controller.steps):
        budgets.append(controller.budget(step))
        stats = world.step(budgets[-1].cap)
        controller.observe(step, stats)
        series["truncated"].append(stats["truncated"])
        series["accuracy"].append(world.accuracy(128))
        series["tokens"].append(world.tokens(128))
    return budgets, series


def main(check: bool) -> int:
    path = PICTURES / "schedules.svg"
    if check:
        fresh = path.is_file() and path.read_text() == schedules()
        print("pictures are up to date" if fresh else f"{path} is out of date; run `python tools/draw_schedules.py`")
        return int(not fresh)
    PICTURES.mkdir(exist_ok=True)
    path.write_text(schedules())
    (PICTURES / "closed-loop.svg").write_text(closed_loop())
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
