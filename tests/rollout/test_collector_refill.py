"""Dynamic sampling by the collector, against engines that give some prompts a signal and others none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, run_config
from test_collector import STAMP, Solver, collect, content, rows_of

from siri_megatron.config import RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import train_prompts
from siri_megatron.data.sampler import PromptSampler
from siri_megatron.errors import EngineError
from siri_megatron.rollout.refill import Refill, Tally

PROMPTS, GROUPS, SIZE, BOUND = 40, 4, 3, 20


def refill_config(place: Path, max_refill: float = BOUND / GROUPS, **sections: Any) -> RunConfig:
    rollout = {"prompts_per_step": GROUPS, "samples_per_prompt": SIZE, "budget_grid": [4, 8, 12], "timeout_s": 20.0,
               "max_refill": max_refill}
    return run_config(place, data={"train_problems": PROMPTS}, rollout=rollout, **sections)


@dataclass
class Examiner(FakeEngine):
    """Answers every prompt rightly, but for the first sample of one prompt in `mixed`, which is wrong."""

    config: RunConfig | None = None
    mixed: int = 3
    dies_at: int = -1
    """Request that is refused, once those that came with it are answered."""
    takes_s: float = 0.01
    arrived: int = 0
    flying: int = 0
    peak: int = 0
    numbers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.config
        self.solver = Solver(self.config, [0] * SIZE)
        self.numbers = {ids: number for number, ids in enumerate(self.solver.answers)}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        fatal, self.arrived = self.arrived == self.dies_at, self.arrived + 1
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        await asyncio.sleep(0.2 if fatal else self.takes_s)
        answered = await super().answer(request)
        self.flying -= 1
        return web.Response(status=400, text="killed") if fatal else answered

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = tuple(body["token_ids"])
        wrong = str((int(self.solver.answers[prompt]) + 1) % 10)
        first = wrong if self.carries(self.numbers[prompt]) else self.solver.answers[prompt]
        answers = [first, *[self.solver.answers[prompt]] * (SIZE - 1)]
        return [self.solver._solved(number, answer) for number, answer in enumerate(answers)]

    def carries(self, prompt: int) -> bool:
        return prompt % self.mixed == self.mixed - 1


def order_of(config: RunConfig, step: int) -> list[int]:
    """The prompts that a step may ask for, in order."""
    sampler = PromptSampler(PROMPTS, config.seed)
    return sampler.take(step, GROUPS) + sampler.further(step, GROUPS, BOUND)


def expected_rounds(config: RunConfig, engine: Examiner, step: int, earlier: Tally) -> list[int]:
    signals = [engine.carries(prompt) for prompt in order_of(config, step)]
    rule, sizes = Refill(GROUPS, BOUND), list[int]()
    while more := rule.further(Tally(sum(sizes), sum(signals[:sum(sizes)])), earlier):
        sizes.append(more)
    return sizes


def test_groups_without_a_signal_are_replaced(tmp_path: Path) -> None:
    config = refill_config(tmp_path)
    engine = Examiner(config=config)
    stats = collect(config, engine)
    sizes = expected_rounds(config, engine, 0, Tally())
    assert (len(sizes) > 1, sum(sizes) < GROUPS + BOUND) == (True, True), "else nothing is tested"
    prompts = train_prompts(config.data, TextCodec.load(config.model.path))
    asked = [prompts[number].id for number in order_of(config, 0)[:sum(sizes)]]
    rows = rows_of(config)
    assert rows.prompt_id[::SIZE].tolist() == asked  # own prompts first, then refills, all of them kept
    assert rows.group[::SIZE].tolist() == list(range(sum(sizes)))
    assert len(set(asked)) == len(asked)
    assert Tally.of(rows, "zero", 0.2).signal >= GROUPS
    assert (stats["refill_groups"], stats["samples"], stats["tokens"]) == (
        sum(sizes) - GROUPS, GROUPS * SIZE, int(rows.response_length.sum()))

    off = refill_config(tmp_path / "off", max_refill=0.0)  # the step's own prompts are the same
    collect(off, Examiner(config=off))
    assert content(rows_of(off)) == content(rows)[:GROUPS * SIZE]


def test_the_bound_ends_it(tmp_path: Path) -> None:
    config = refill_config(tmp_path)
    engine = Examiner(config=config, mixed=PROMPTS)  # one prompt of all has a signal
    stats = collect(config, engine)
    assert len(engine.asked) == GROUPS + BOUND
    assert (stats["refill_groups"], len(rows_of(config))) == (BOUND, (GROUPS + BOUND) * SIZE)
    assert Tally.of(rows_of(config), "zero", 0.2).signal < GROUPS


def test_what_the_last_steps_say_is_sent_at_once(tmp_path: Path) -> None:
    """The second step knows how rare a signal is: its first round is larger than its own prompts."""
    config = refill_config(tmp_path)
    first, second = Examiner(config=config), Examiner(config=config, takes_s=0.5)  # all of a round arrive meanwhile
    collect(config, first)
    assert first.peak <= max(expected_rounds(config, first, 0, Tally()))
    collect(config, second, stamp=replace(STAMP, step=1))
    sizes = expected_rounds(config, second, 1, Tally.of(rows_of(config, 0), "zero", 0.2))
    assert second.peak == sizes[0] > GROUPS
    assert len(second.asked) == sum(sizes)
    ignorant = refill_config(tmp_path / "ignorant")  # negative control: without step 0
    third = Examiner(config=ignorant)
    collect(ignorant, third, stamp=replace(STAMP, step=1))
    assert len(third.asked) == sum(expected_rounds(ignorant, third, 1, Tally())) != sum(sizes)


@pytest.mark.parametrize("dies_at", [2, 5, 7])
def test_a_killed_refill_ends_with_the_same_groups(tmp_path: Path, dies_at: int) -> None:
    """In its own prompts, and in refills of which others were finished; vime#324 loses those at a resume."""
    whole, config = refill_config(tmp_path / "whole"), refill_config(tmp_path / "killed")
    collect(whole, Examiner(config=whole))
    with pytest.raises(EngineError, match="killed"):
        collect(config, Examiner(config=config, dies_at=dies_at))
    resumed = Examiner(config=config)
    stats = collect(config, resumed)
    assert content(rows_of(config)) == content(rows_of(whole))
    assert 0 < len(resumed.asked) < GROUPS + stats["refill_groups"]


def test_refill_prompts_have_caps_of_their_own(tmp_path: Path) -> None:
    config = refill_config(tmp_path)
    prompts = train_prompts(config.data, TextCodec.load(config.model.path))
    caps = {prompts[number].id: 9 for number in order_of(config, 0)[3:6]}
    collect(config, Examiner(config=config), caps=caps)
    assert rows_of(config).cap[::SIZE].tolist()[:7] == [12, 12, 12, 9, 9, 9, 12]


@pytest.mark.parametrize(("sections", "words"), [
    ({"algorithm": {"drop_uniform_groups": False}}, "drop_uniform_groups=false"),
    ({"reward": {"length_rule": "laser_d"}}, "length_rule=laser_d"), ({"max_refill": 0.1}, "less than one group")])
def test_what_cannot_be_refilled_is_refused(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        refill_config(tmp_path, **sections)
