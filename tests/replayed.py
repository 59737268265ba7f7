"""A run on learner ranks that trains from a recorded ledger, and may die in the midst of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ranks import Rank

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.paths import RunDir
from siri_megatron.rollout.source import ReplaySource


class DyingSource(ReplaySource):
    """The recorded rollouts; the process that asks for step `die_at` is lost."""

    def __init__(self, recorded: RunDir, config: RunConfig, die_at: int) -> None:
        super().__init__(recorded, config)
        self.die_at, self.caps_asked = die_at, list[dict[str, int]]()

    def collect(self, budget: StepBudget, stop: threading.Event, caps: Mapping[str, int]) -> dict[str, Any] | None:
        if budget.step == self.die_at:
            raise SystemError("killed")
        self.caps_asked.append(dict(caps))
        return super().collect(budget, stop, caps)


def replayed(rank: Rank, config: RunConfig, place: Path, name: str, die_at: int) -> Any:
    """The run `name`, at its last commit, ready to train from place/recorded; die_at -1: to its end."""
    from siri_megatron.assemble import assemble

    paths, recorded = RunDir(place / name), place / "recorded"
    paths.root.mkdir(exist_ok=True)
    run = assemble(config, paths, rank=rank.rank, replay=recorded)
    run.source = DyingSource(RunDir(recorded), config, die_at)
    return run
