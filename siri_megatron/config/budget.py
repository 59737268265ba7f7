"""The moving budget: how the cap on response tokens goes from step to step (docs/controller.md has pictures)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import Section

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Pairs = tuple[tuple[Positive, Positive], ...]


class ClosedLoopConfig(Section):
    """Limits of the closed loop; read by `schedule: closed` only. Lengths left out follow `cycle_steps`."""

    first_cap: int | None = Field(None, ge=1)
    """Cap of the warm-up hold, and top of the first expansion; None: l_max."""
    window: int | None = Field(None, ge=1)
    """Steps whose samples are pooled for a decision; None: a 16th of cycle_steps, at least 2."""
    dwell: int | None = Field(None, ge=1)
    """Fewest steps of a phase; None: a quarter of cycle_steps, at least the window."""
    longest_phase: int | None = Field(None, ge=1)
    """Most steps of a phase; None: cycle_steps."""
    slope: int | None = Field(None, ge=1)
    """Most tokens that the cap moves in a step; None: the cosine's steepest, pi (l_max - l_min) / cycle_steps."""
    delta: float = Field(0.2, gt=0, lt=1)
    """How deep a compression bites: the next L_min is the smallest grid budget B with J(B) >= (1 - delta) J(cap)."""
    hysteresis: float = Field(0.02, ge=0, lt=1)
    """Margin on delta by which another L_min must be better before the last one is left."""
    kappa: float = Field(1.02, ge=1)
    """The next L_max may shrink to the smallest B with J(2B) <= kappa J(B); e3 takes 1.2 to choose a budget."""
    grow_truncated: Share = 0.1
    """The next L_max grows by one notch of the grid while more samples than this share are truncated at the top."""
    hold_truncated: Share = 0.2
    """Compression does not lower the cap while the truncated share is above this."""
    end_truncated: Share = 0.4
    """Compression ends when the truncated share reaches this."""
    recovery: Share = 0.02
    """Compression ends at L_min when the answers that end are right as often as before it, less this share."""
    plateau: float = Field(0.01, ge=0)
    """Expansion ends at the top when accuracy rises by no more than this from one window to the next."""

    @model_validator(mode="after")
    def _ordered(self) -> ClosedLoopConfig:
        if self.hold_truncated > self.end_truncated:
            raise ValueError(f"hold_truncated={self.hold_truncated:g} is above end_truncated={self.end_truncated:g}: "
                             "the cap is held before the phase is ended; lower hold_truncated")
        if self.hysteresis > self.delta:
            raise ValueError(f"hysteresis={self.hysteresis:g} is above delta={self.delta:g}: no L_min could ever fall; "
                             "lower hysteresis")
        return self


class PromptCapsConfig(Section):
    """Caps below the step's for prompts that are solved often; read by `rule` other than none."""

    rule: Literal["none", "da_dler", "laser_d"] = "none"
    """none; da_dler: one lower cap from a solve rate of 1/2 on; laser_d: caps by difficulty, from 1/3 and 2/3 on."""
    shares: tuple[Share, ...] = ()
    """Shares of the step's cap, easiest first; empty: da_dler 0.5 (the paper's), laser_d 0.5, 0.75 (ours)."""
    floor: int | None = Field(None, ge=1)
    """Smallest cap of a prompt; None: l_min."""
    memory: float = Field(0.0, ge=0, lt=1)
    """Weight of the past in a prompt's solve rate: rate <- memory x rate + (1 - memory) x newest; 0: the newest."""

    @model_validator(mode="after")
    def _every_key_is_read(self) -> PromptCapsConfig:
        if self.rule == "none" and (given := self.model_dump(exclude_defaults=True)):
            raise ValueError(f"prompt_caps={given} with rule=none, which reads none "
                             "of it: leave it out, or set rule=da_dler")
        wanted = {"none": 0, "da_dler": 1, "laser_d": 2}[self.rule]
        if self.shares and (len(self.shares) != wanted or list(self.shares) != sorted(self.shares)):
            raise ValueError(f"shares={list(self.shares)} with rule={self.rule}: it takes {wanted}, easiest (lowest) "
                             "first; correct shares, or leave them out")
        return self


class BudgetConfig(Section):
    schedule: Literal["cosine", "stair", "stair_cosine", "linear", "constant", "staged", "closed"] = "cosine"
    """How the cap moves (docs/controller.md); `closed` decides from what it measures."""
    l_min: int = Field(ge=1)
    """Smallest cap, response tokens."""
    l_max: int = Field(ge=1)
    """Largest cap, response tokens; engines and packs are provisioned for it at launch."""
    cycle_steps: int | None = Field(None, ge=2)
    """Steps of one cycle: a compression phase, then an expansion phase. closed: the nominal cycle, its time scale."""
    cycles: int | None = Field(None, ge=1)
    """Number of cycles; a run has hold_steps + cycles x cycle_steps steps. closed: it ends then, whatever the phase."""
    compression_steps: int | None = Field(None, ge=1)
    """Steps of a cycle that belong to compression; None: half of them."""
    hold_steps: int = Field(0, ge=0)
    """Warm-up: steps at the first cycle's top before the cap moves; they belong to the first compression."""
    ranges: Pairs = ()
    """(lowest, highest) cap of every cycle, the last pair for all further ones; empty: (l_min, l_max)."""
    stages: Pairs = ()
    """staged: (steps, cap) of every stage, for example [[1040, 8192], [480, 16384], [230, 24576]]."""
    closed: ClosedLoopConfig = ClosedLoopConfig()
    prompt_caps: PromptCapsConfig = PromptCapsConfig()

    @property
    def steps(self) -> int:
        """Steps of the run; of a closed loop the limit."""
        if self.schedule == "staged":
            return sum(steps for steps, _ in self.stages)
        return self.hold_steps + (self.cycle_steps or 0) * (self.cycles or 0)

    @property
    def compression(self) -> int:
        """Steps of a cycle's compression phase, without a warm-up hold."""
        return self.compression_steps or (self.cycle_steps or 0) // 2

    @property
    def phase_ends(self) -> int:
        """Phase ends of the run; of a closed loop the most there can be."""
        if self.schedule == "closed":
            return math.ceil(self.steps / self.dwell)
        return len(self.stages) or 2 * (self.cycles or 0)

    def range_of(self, cycle: int) -> tuple[int, int]:
        """(lowest, highest) cap of a cycle."""
        return self.ranges[min(cycle, len(self.ranges) - 1)] if self.ranges else (self.l_min, self.l_max)

    @property
    def window(self) -> int:
        return self.closed.window or max(2, (self.cycle_steps or 0) // 16)

    @property
    def dwell(self) -> int:
        return self.closed.dwell or max(self.window, (self.cycle_steps or 0) // 4)

    @property
    def longest_phase(self) -> int:
        return self.closed.longest_phase or max(self.dwell, self.cycle_steps or 0)

    @property
    def slope(self) -> int:
        return self.closed.slope or max(1, math.floor(math.pi * (self.l_max - self.l_min) / (self.cycle_steps or 1)))

    @property
    def first_cap(self) -> int:
        return self.closed.first_cap or self.l_max

    @model_validator(mode="after")
    def _whole(self) -> BudgetConfig:
        if self.l_min > self.l_max:
            raise ValueError(f"l_min={self.l_min} is above l_max={self.l_max}: l_min <= l_max; lower l_min")
        self._check_read()
        if self.schedule != "staged":
            self._check_cycle()
        self._check_caps()
        if self.schedule == "closed":
            self._check_closed()
        if (self.prompt_caps.floor or 0) > self.l_max:
            raise ValueError(f"prompt_caps.floor={self.prompt_caps.floor} is above l_max={self.l_max}: no prompt could "
                             "ever have it; lower prompt_caps.floor")
        return self

    def _check_read(self) -> None:
        """Every schedule has the keys it needs, and no others."""
        keys = ("cycle_steps", "cycles", "compression_steps", "hold_steps", "ranges", "stages")
        needs = {"stages"} if self.schedule == "staged" else {"cycle_steps", "cycles"}
        further = {"staged": (), "closed": ("hold_steps",), "constant": ("hold_steps", "compression_steps")}
        takes = needs.union(further.get(self.schedule, ("hold_steps", "compression_steps", "ranges")))
        given = {key for key in keys if getattr(self, key)}
        if missing := [key for key in keys if key in needs - given]:
            raise ValueError(f"schedule={self.schedule} without {' and '.join(missing)}: it needs "
                             f"{' and '.join(sorted(needs))}; set budget.{missing[0]}")
        if surplus := [key for key in keys if key in given - takes]:
            raise ValueError(f"{surplus[0]}={getattr(self, surplus[0])} with schedule={self.schedule}, which does not "
                             f"read it: leave {surplus[0]} out, or choose another schedule")
        if self.schedule != "closed" and (settings := self.closed.model_dump(exclude_defaults=True)):
            raise ValueError(f"closed={settings} with schedule={self.schedule}, which does not read it: leave closed "
                             "out, or set schedule=closed")

    def _check_cycle(self) -> None:
        length, falls = self.cycle_steps or 0, self.compression_steps
        if falls is None and length % 2:
            raise ValueError(f"cycle_steps={length} is odd: phases are half a cycle; use an even number, or set "
                             "compression_steps")
        if falls is not None and falls >= length:
            raise ValueError(f"compression_steps={falls} of cycle_steps={length}: both phases have at least one step; "
                             "lower compression_steps")

    def _check_caps(self) -> None:
        """No cap is outside of what the run is provisioned for."""
        caps = [("ranges", low, high) for low, high in self.ranges] + [("stages", cap, cap) for _, cap in self.stages]
        if self.closed.first_cap:
            caps.append(("closed.first_cap", self.closed.first_cap, self.closed.first_cap))
        for key, low, high in caps:
            if not self.l_min <= low <= high <= self.l_max:
                named = f"{low}..{high}" if low != high else f"{low}"
                raise ValueError(f"{key} has the cap {named}, the run l_min={self.l_min}..l_max={self.l_max}: caps "
                                 "stay within them, lowest first; correct it, or widen l_min and l_max")

    def _check_closed(self) -> None:
        if not self.window <= self.dwell <= self.longest_phase:
            raise ValueError(f"closed.window={self.window}, closed.dwell={self.dwell}, closed.longest_phase="
                             f"{self.longest_phase}: window <= dwell <= longest_phase, or a phase ends unmeasured; "
                             "correct what was set")
