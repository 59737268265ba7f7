"""Dynamic sampling's rounds, under the invariants' names. Oracle: groups drawn one by one, counted in plain Python."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import kept_rows
from siri_megatron.config import AlgorithmConfig
from siri_megatron.reward.overlong import shaped
from siri_megatron.rollout.refill import Refill, Tally, needed

wanted_, bound_, chance_ = st.integers(1, 40), st.integers(0, 120), st.floats(0, 1)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    groups = draw(st.integers(0, 200))
    return Tally(groups, draw(st.integers(0, groups)))


def rounds(rule: Refill, signals: list[bool], earlier: Tally) -> list[int]:
    """Sizes of the rounds of a step whose groups carry these signals."""
    sizes: list[int] = []
    while more := rule.further(Tally(sum(sizes), sum(signals[:sum(sizes)])), earlier):
        sizes.append(more)
    return sizes


@given(wanted_, bound_, chance_, st.integers(0, 9), tallies())
def test_never_beyond_the_bound_ends_and_fills(wanted: int, bound: int, chance: float, seed: int,
                                               earlier: Tally) -> None:
    rng = random.Random(seed)
    signals = [rng.random() < chance for _ in range(wanted + bound)]
    rule = Refill(wanted, bound)
    sizes = rounds(rule, signals, earlier)
    asked = sum(sizes)
    assert all(sizes)
    assert wanted <= asked <= wanted + bound
    assert sum(signals[:asked]) >= wanted or asked == wanted + bound
    assert sizes == rounds(Refill(wanted, bound), signals, earlier)  # deterministic


@given(wanted_, bound_, tallies(), tallies())
def test_never_fewer_than_needed(wanted: int, bound: int, so_far: Tally, earlier: Tally) -> None:
    more, missing = Refill(wanted, bound).further(so_far, earlier), wanted - so_far.signal
    forbidden = more == max(0, wanted + bound - so_far.groups)
    chance = (so_far + earlier).chance
    assert missing <= 0 or forbidden or more * chance >= missing - 1e-6


@given(st.integers(1, 300), st.floats(0.01, 1))
def test_needed_is_the_smallest_that_holds(missing: int, chance: float) -> None:
    def brings(groups: int) -> float:
        return groups * chance - math.sqrt(groups * chance * (1 - chance))

    groups = needed(missing, chance)
    assert brings(groups) >= missing - 1e-6
    assert groups == missing or brings(groups - 1) < missing


@given(wanted_, tallies(), tallies())
def test_off_is_off(wanted: int, so_far: Tally, earlier: Tally) -> None:
    rule = Refill.of(wanted, 0.0)
    assert rule.further(Tally(), earlier) == wanted
    assert rule.further(Tally(wanted, min(so_far.signal, wanted)), earlier) == 0


def test_prediction_saves_rounds() -> None:
    """Half of the groups carry a signal: whoever knows it needs one round mostly, whoever does not three or more."""
    rng = random.Random(0)
    steps = [[rng.random() < 0.5 for _ in range(192)] for _ in range(200)]
    rule = Refill(64, 128)
    knowing = [rounds(rule, signals, Tally(256, 128)) for signals in steps]
    assert np.mean([len(sizes) == 1 for sizes in knowing]) > 0.75
    assert np.mean([sum(sizes) for sizes in knowing]) < 1.15 * 128
    round_by_round = [rounds_of_what_is_missing(64, signals) for signals in steps]
    assert np.mean([len(sizes) for sizes in round_by_round]) > 4 > 2 > np.mean([len(sizes) for sizes in knowing])


def rounds_of_what_is_missing(wanted: int, signals: list[bool]) -> list[int]:
    sizes = [wanted]
    while (missing := wanted - sum(signals[:sum(sizes)])) > 0:
        sizes.append(missing)
    return sizes


def test_the_bound_is_a_share_of_the_prompts() -> None:
    assert [Refill.of(16, share).bound for share in (0, 0.5, 1, 2.03)] == [0, 8, 16, 32]
    assert (Tally().chance, Tally(8, 0).chance, Tally(8, 2).chance) == (1, 1 / 8, 1 / 4)


NAN = math.nan
row_ = st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0, NAN]), st.booleans(), st.integers(1, 10))


@given(st.lists(row_, min_size=1, max_size=30), st.sampled_from(["zero", "mask", "soft", "forced"]))
def test_the_learner_trains_on_the_groups_that_were_counted(table: list[tuple[int, float, bool, int]],
                                                            overlong: Any) -> None:
    """Two places ask for a signal; were they to disagree, a step would train on fewer groups than were asked for."""
    group, reward, cut, length = (np.array(column) for column in zip(*table, strict=True))
    rows = SimpleNamespace(group=group, reward=reward, truncated=cut, response_length=length, cap=np.full(len(cut), 10))
    final = shaped(overlong, reward, length, cut, cap=10, buffer=0.5)
    kept = kept_rows(RowLengths(length, length, group, final), AlgorithmConfig())
    counted = Tally.of(rows, overlong, 0.5)  # type: ignore[arg-type]
    assert counted == Tally(len(set(group.tolist())), len(set(group[kept].tolist())))


@pytest.mark.parametrize(("overlong", "signals"), [("zero", 2), ("mask", 1), ("soft", 3), ("forced", 2)])
def test_a_signal_is_in_the_rewards_after_overlong_handling(overlong: str, signals: int) -> None:
    """Groups: right and wrong; right and cut; right and failed; two wrong ones, the second close to the cap."""
    rewards = [[1, 0], [1, 0], [1, NAN], [0, 0]]
    cut = [[False, False], [False, True], [False, False], [False, False]]
    length = [[1, 1], [1, 10], [1, 1], [1, 9]]
    rows = SimpleNamespace(group=np.repeat(range(4), 2), reward=np.ravel(rewards), truncated=np.ravel(cut),
                           response_length=np.ravel(length), cap=np.full(8, 10))
    assert Tally.of(rows, overlong, 0.5) == Tally(4, signals)  # type: ignore[arg-type]
    assert Tally.of(rows, overlong, 0.5, below=1) == Tally(1, 1)  # type: ignore[arg-type]
