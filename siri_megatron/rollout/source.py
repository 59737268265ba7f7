"""Where the groups of a step come from, as the training loop sees it: the collector, or an earlier run's ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from siri_megatron.budget.prompt_caps import check_caps
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.errors import DataError, RunFailed
from siri_megatron.ledger.read import closed_steps, open_step, ranges
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient
from siri_megatron.rollout.staleness import staleness_stats
from siri_megatron.rollout.stats import step_stats

POLL_S = 0.1


class Source(Protocol):
    """Used by rank 0 only, but for `ledger`, which every rank reads."""

    ledger: Path

    def ready(self, stop: threading.Event) -> bool:
        """Wait until groups can be had; False when a stop was asked for first."""

    def admit(self, budget: StepBudget, caps: Mapping[str, int]) -> None:
        """Have a step sampled in the background, for a `collect` to come with the same budget and caps."""

    def collect(self, budget: StepBudget, stop: threading.Event, caps: Mapping[str, int]) -> dict[str, Any] | None:
        """Have the step closed in the ledger; returns its statistics, None when a stop was asked for first.

        Args:
            caps: prompt -> cap, of the prompts whose cap is below the step's.
        """

    def evaluate(self, tag: str, step: int, stop: threading.Event) -> dict[str, Any] | None:
        """Evaluate the weights for `step`; None when there is nothing to evaluate with, or a stop was asked for."""


class Stopped(Exception):
    """A stop was asked for while the collector was working; its finished groups stay in the open ledger step."""


class CollectorSource:
    """The groups are sampled now, by the fleet."""

    def __init__(self, paths: RunDir, config: RunConfig) -> None:
        self.ledger = paths.ledger
        self._paths, self._config = paths, config
        self._client = CollectorClient(paths)

    def ready(self, stop: threading.Event) -> bool:
        """Wait until engines and collector have published their addresses.

        Raises:
            RunFailed: they have not within the engines' start time-out.
        """
        deadline = time.monotonic() + self._config.engines.start_timeout_s
        needed = (self._paths.fleet, self._paths.collector)
        while missing := [path.name for path in needed if not path.exists()]:
            if stop.is_set():
                return False
            if time.monotonic() > deadline:
                raise RunFailed(f"{' and '.join(missing)} did not appear in {self._paths.root} within "
                                f"{self._config.engines.start_timeout_s:g} s",
                                rule="engines and collector serve before the first step", fix="read logs/engine-*.log")
            time.sleep(POLL_S)
        return True

    def admit(self, budget: StepBudget, caps: Mapping[str, int]) -> None:
        self._client.order(budget, str(budget.step), caps)

    def collect(self, budget: StepBudget, stop: threading.Event, caps: Mapping[str, int]) -> dict[str, Any] | None:
        try:
            return self._client.collect(budget, str(budget.step), timeout_s=self._config.collect_timeout_s(budget.cap),
                                        on_progress=lambda _: raise_if(stop), caps=caps)
        except Stopped:
            return None

    def evaluate(self, tag: str, step: int, stop: threading.Event) -> dict[str, Any] | None:
        try:
            limit_s = self._config.evaluation_wait_s + self._config.evaluation_timeout_s
            return self._client.evaluate(tag, str(step), timeout_s=limit_s,
                                         on_progress=lambda _: raise_if(stop))
        except Stopped:
            return None


class ReplaySource:
    """The groups lie in the ledger of an earlier run: training without engines, a debugging tool and an oracle.

    Raises:
        DataError: the ledger lacks a step of this run's schedule.
    """

    def __init__(self, run: RunDir, config: RunConfig) -> None:
        self.ledger = run.ledger
        self._rollout = config.rollout
        missing = sorted(set(range(config.budget.steps)) - set(closed_steps(run.ledger)))
        if missing:
            raise DataError(f"the ledger {run.ledger} lacks {len(missing)} of {config.budget.steps} steps: "
                            f"{ranges(missing)}", rule="a replay needs every step of the schedule",
                            fix="finish that run (--resume), or shorten budget.cycles; what checkpoint.keep_ledger has "
                                "removed is gone")

    def ready(self, stop: threading.Event) -> bool:
        return True

    def admit(self, budget: StepBudget, caps: Mapping[str, int]) -> None:
        """It is there."""

    def collect(self, budget: StepBudget, stop: threading.Event, caps: Mapping[str, int]) -> dict[str, Any] | None:
        """Statistics of the recorded step.

        Raises:
            DataError: it was recorded under another stamp, or a prompt under another cap.
        """
        if stop.is_set():
            return None
        rows = open_step(self.ledger, budget.step)
        if rows.budget != budget:
            raise DataError(f"ledger step {budget.step} was admitted under {rows.budget}, now it is {budget}",
                            rule="a replay follows the schedule of the run that it replays",
                            fix="use that run's own config.yaml")
        check_caps(rows, budget, caps, lowered=self._rollout.lowered_cap != "keep")
        ahead = staleness_stats(rows, caps) if self._rollout.lag else {}
        return {**step_stats(rows, self._rollout), **ahead, "reused": True, "generation_s": 0.0, "verification_s": 0.0}

    def evaluate(self, tag: str, step: int, stop: threading.Event) -> dict[str, Any] | None:
        return None


def raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped
