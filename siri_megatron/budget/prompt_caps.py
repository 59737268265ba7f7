"""Caps a prompt: a prompt that is solved often gets a share of the step's cap, every other one the whole. No I/O.

    ledger rows of a consumed step ─► solve rate of its prompts ─► cap of these prompts the next time they are admitted

    da_dler   half of the step's cap from a solve rate of 1/2 on (DA-DLER, arXiv 2510.15110: 2,000 of 4,000 tokens)
    laser_d   half from 2/3 on, three quarters from 1/3 on (LASER-D's difficulties, arXiv 2505.15612; shares are ours)

A solve rate is measured under the cap that the prompt had. So a prompt that needs more than its share is solved less
often there, and gets the whole cap back. `memory` slows this down.

Invariants:
- within_the_step: floor <= cap <= the step's cap (the step's cap itself where it is below the floor).
- unknown_gets_all: a prompt without solve rate has the step's cap.
- easier_is_never_longer: of two prompts the one that is solved more often has no larger cap.
- follows_the_step: for the same rates a larger cap of the step makes no prompt's smaller.
- failures_teach_nothing: samples without a verdict are left out; a group without any leaves the rate as it is.
- bounded: at most LIMIT prompts are remembered, those seen last.
- decided_by_what_was_heard: with a lag of k the cap in step s follows from the steps before s - k, whenever asked for.
- state_round_trip: restored from its state, which is JSON, it gives the same caps as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from siri_megatron.budget.schedule import round_cap
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import BudgetConfig
from siri_megatron.errors import DataError
from siri_megatron.ledger.columns import LedgerColumns

LIMIT = 100_000
"""Prompts remembered; in the commit record each takes about 20 bytes and its name."""
DIGITS = 4
"""Solve rates are rounded to so many digits, in use as in the state: short there, and the same after a resume."""
RULES: dict[str, tuple[tuple[float, float], ...]] = {
    "none": (), "da_dler": ((1 / 2, 0.5),), "laser_d": ((2 / 3, 0.5), (1 / 3, 0.75))}
"""(solve rate from which, share of the step's cap) of every rule, easiest first."""


class PromptCaps:
    """The solve rates of a run's prompts, and the caps that follow from them.

    Args:
        lag: steps that are admitted ahead of the next one.
    """

    def __init__(self, config: BudgetConfig, lag: int = 0) -> None:
        self._rule, self._memory = config.prompt_caps.rule, config.prompt_caps.memory
        self._floor = config.prompt_caps.floor or config.l_min
        shares = config.prompt_caps.shares or [share for _, share in RULES[self._rule]]
        self._steps = tuple((rate, share) for (rate, _), share in zip(RULES[self._rule], shares, strict=True))
        self._lag = lag
        self._rates: dict[str, float] = {}
        self._newest: list[dict[str, float]] = []
        """Solve rates of the last `lag` steps heard: a step that was admitted before them goes without them."""

    def below(self, cap: int, ahead: int = 0) -> dict[str, int]:
        """Prompt -> cap, of every known prompt whose cap is below the step's.

        Args:
            cap: the step's.
            ahead: which step: 0 for the one after the last heard, up to `lag`.
        """
        stairs, known = self._stairs(cap), self._known(ahead)
        caps = {prompt: _step_of(stairs, rate, cap) for prompt, rate in known.items()}
        return {prompt: own for prompt, own in caps.items() if own < cap}

    def _known(self, ahead: int) -> dict[str, float]:
        """The rates that the admission of a step may have heard of."""
        rates = dict(self._rates) if self._newest else self._rates
        self._learn(rates, self._newest[:max(0, len(self._newest) + ahead - self._lag)])
        return rates

    def _stairs(self, cap: int) -> list[tuple[float, int]]:
        """(solve rate from which, cap), easiest first."""
        return [(round(least, DIGITS), min(cap, max(self._floor, round_cap(share * cap))))
                for least, share in self._steps]

    def observe(self, rows: LedgerColumns) -> None:
        """Hear a consumed step: the solve rates of its prompts."""
        if not self._steps:
            return
        self._newest.append(solve_rates(rows))
        cut = max(0, len(self._newest) - self._lag)
        self._learn(self._rates, self._newest[:cut])
        self._newest = self._newest[cut:]

    def _learn(self, rates: dict[str, float], steps: Iterable[Mapping[str, float]]) -> None:
        """Take the solve rates of some steps into `rates`."""
        for prompt, rate in (item for step in steps for item in step.items()):
            before = rates.pop(prompt, rate)  # put back at the end: the first is the one not seen for longest
            rates[prompt] = round(self._memory * before + (1 - self._memory) * rate, DIGITS)
        while len(rates) > LIMIT:
            del rates[next(iter(rates))]

    def state(self) -> dict[str, Any]:
        """JSON for the commit record, in the order in which prompts were last seen."""
        return {"rates": dict(self._rates)} | ({"newest": self._newest} if self._lag else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._rates = _as_rates(state["rates"])
        self._newest = [_as_rates(step) for step in state["newest"]] if self._lag else []


def _as_rates(raw: Mapping[str, Any]) -> dict[str, float]:
    return {str(prompt): float(rate) for prompt, rate in raw.items()}


def _step_of(stairs: Sequence[tuple[float, int]], rate: float, cap: int) -> int:
    for least, own in stairs:
        if rate >= least:
            return own
    return cap


def solve_rates(rows: LedgerColumns) -> dict[str, float]:
    """Share of right responses among those with a verdict, of every prompt that has one; in the order of the rows.

    A reward between 0 and 1 (a custom verifier's) is not right. A prompt that a step takes twice (at the seam of two
    epochs) has one rate, over both of its groups.
    """
    prompts, first, index = np.unique(rows.prompt_id, return_index=True, return_inverse=True)
    judged = np.bincount(index, ~np.isnan(rows.reward))
    right = np.bincount(index, rows.reward == 1)
    return {str(prompts[at]): float(right[at] / judged[at]) for at in np.argsort(first, kind="stable") if judged[at]}


def check_caps(rows: LedgerColumns, budget: StepBudget, caps: Mapping[str, int], *, lowered: bool = False) -> None:
    """Raises DataError unless every row of a step has the cap that is asked for.

    Args:
        caps: as `PromptCaps.below` gives.
        lowered: it may be smaller: a group in flight may have got the cap of a later step (`rollout.lowered_cap`).
    """
    for prompt, cap in zip(rows.prompt_id, rows.cap, strict=True):
        asked = caps.get(prompt, budget.cap)
        if cap > asked or (cap < asked and not lowered):
            raise DataError(f"prompt {prompt} of ledger step {budget.step} was admitted with cap {cap}, asked for "
                            f"is {asked}", rule="a group keeps the cap it was admitted with",
                            fix="resume or replay with the run's own config.yaml, from step 0 on or from a commit")
