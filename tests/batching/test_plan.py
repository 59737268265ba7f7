from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.buckets import planned_shapes
from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import Method
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig, OptimizerConfig

L_MAX, MAX_PROMPT = 128, 64
METHOD = Method.of(AlgorithmConfig(), OptimizerConfig(lr=1e-3))


def budget(cap=128, step=7):
    return StepBudget(step, 0, "compression", cap, 1)


def plan(rows, *, cap=128, step=7, mode="packed", tokens=512, buckets=3, dp=1, multiple=1, cp=1, most_groups=None,
         **algorithm):
    chosen = AlgorithmConfig(**algorithm)
    shapes = {"buckets": buckets} if mode == "bucketed" else {}
    return plan_step(rows, budget(cap, step), chosen,
                     BatchingConfig(mode=mode, tokens_per_micro_batch=tokens, **shapes),
                     method=Method.of(chosen, OptimizerConfig(lr=1e-3)), dp=dp, multiple=multiple, cp=cp,
                     l_max=L_MAX, max_prompt=MAX_PROMPT, most_groups=most_groups)


def table(rows):
    """RowLengths from (prompt, response, group, reward) tuples."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    prompt, response, group = (np.array(column, np.int64) for column in columns[:3])
    return RowLengths(prompt, response, group, np.array(columns[3], np.float64))


tables = st.lists(st.tuples(st.integers(1, MAX_PROMPT), st.integers(0, L_MAX), st.integers(0, 9),
                            st.sampled_from([0.0, 1.0, float("nan")])), max_size=60).map(table)
layouts = st.fixed_dictionaries({
    "mode": st.sampled_from(["packed", "bucketed"]), "tokens": st.integers(192, 600), "buckets": st.integers(1, 4),
    "dp": st.integers(1, 4), "multiple": st.integers(1, 4), "cp": st.sampled_from([1, 1, 2, 3, 4])})
algorithms = st.fixed_dictionaries({
    "loss": st.sampled_from(["grpo", "dapo", "dr_grpo", "gspo", "cispo"]),
    "advantage": st.sampled_from(["group_std", "group_mean", "batch_std", "leave_one_out"]),
    "drop_uniform_groups": st.booleans(), "mini_batches": st.integers(1, 3)})


@given(tables, layouts, algorithms, st.data())
def test_forced_tokens_are_in_no_denominator(rows, layout, algorithm, data):
    """The weights are those of rows that never had them, the widths those of rows that do; all forced: not trained."""
    forced = np.array([data.draw(st.integers(0, int(one))) for one in rows.response], np.int64)
    found = plan(replace(rows, forced=forced), **layout, **algorithm)
    shorter = plan(replace(rows, response=rows.response - forced), **layout, **algorithm)
    assert found.token_weights == shorter.token_weights
    assert found.advantages == shorter.advantages
    assert found.lengths == tuple((rows.prompt + rows.response - 1).tolist())
    for step, other in zip(found.optimizer_steps, shorter.optimizer_steps, strict=True):
        assert sorted(placed(step)) == sorted(placed(other))


@given(tables, layouts, algorithms, st.integers(1, 10))
def test_first_groups_first(rows, layout, algorithm, most):
    """As if the rows of the other groups had never been: the same weights, advantages and steps for those that stay."""
    whole = plan(rows, **layout, **algorithm)
    trained = sorted({rows.group[row] for step in whole.optimizer_steps for row in placed(step)})[:most]
    stays = np.isin(rows.group, trained)
    fewer = plan(RowLengths(*(column[stays] for column in (rows.prompt, rows.response, rows.group, rows.reward))),
                 **layout, **algorithm)
    found = plan(rows, most_groups=most, **layout, **algorithm)
    for name in ("token_weights", "advantages"):
        column = np.array(getattr(found, name))
        assert tuple(column[stays]) == getattr(fewer, name)
        assert not column[~stays].any()
    numbers = np.flatnonzero(stays)
    assert [sorted(placed(step)) for step in found.optimizer_steps] == [
        sorted(numbers[placed(step)].tolist()) for step in fewer.optimizer_steps]
    assert found.dropped_groups == len(set(rows.group.tolist())) - len(trained)


def placed(step):
    return [row for rank in step.ranks for micro in rank for row in micro.rows]


def kept(rows, drop):
    """Oracle, row by row: a verdict, a response, and unless uniform groups stay, two verdicts in its group."""
    def peers(row):
        return {rows.reward[r] for r in range(len(rows)) if rows.group[r] == rows.group[row] and rows.reward[r] >= 0}
    return {row for row in range(len(rows))
            if rows.reward[row] >= 0 and rows.response[row] > 0 and (not drop or len(peers(row)) > 1)}


@given(tables, layouts, algorithms)
def test_each_kept_row_once(rows, layout, algorithm):
    steps = plan(rows, **layout, **algorithm).optimizer_steps
    assert Counter(row for step in steps for row in placed(step)) == Counter(
        kept(rows, algorithm["drop_uniform_groups"]))


@given(tables, layouts, algorithms)
def test_dropped_rows_weigh_nothing(rows, layout, algorithm):
    made = plan(rows, **layout, **algorithm)
    alive = kept(rows, algorithm["drop_uniform_groups"])
    for row in range(len(rows)):
        assert (made.token_weights[row] > 0) == (row in alive)
        assert row in alive or made.advantages[row] == 0


@given(tables, layouts, algorithms)
def test_groups_stay_together(rows, layout, algorithm):
    made = plan(rows, **layout, **algorithm)
    homes = [{int(rows.group[row]) for row in placed(step)} for step in made.optimizer_steps]
    assert len(homes) <= algorithm["mini_batches"]
    assert sum(len(home) for home in homes) == len(set().union(*homes)) == len(set(rows.group)) - made.dropped_groups
    assert not homes or max(map(len, homes)) - min(map(len, homes)) <= 1


@given(tables, layouts, algorithms, st.sampled_from([16, 64, 128]))
def test_no_bin_over_capacity(rows, layout, algorithm, cap):
    made = plan(rows, cap=cap, **layout, **algorithm)
    assert made.capacity <= layout["tokens"]
    for micro in made.micro_batches():
        cp = layout["cp"]
        real = [made.lengths[row] if cp == 1 else -(-made.lengths[row] // (2 * cp)) * 2 * cp for row in micro.rows]
        assert micro.width % (8 * cp) == 0
        assert 0 < micro.padded_tokens <= made.capacity
        assert (sum(real) if made.mode == "packed" else max(real, default=0)) <= micro.width


@given(tables, layouts, algorithms)
def test_no_shape_outside_the_planned(rows, layout, algorithm):
    made = plan(rows, **layout | {"mode": "bucketed"}, **algorithm)
    known = planned_shapes(made.widths, made.capacity, 8 * layout["cp"])
    assert {micro.shape for micro in made.micro_batches()} <= known


@given(tables, layouts, algorithms)
def test_equal_counts(rows, layout, algorithm):
    for step in plan(rows, **layout, **algorithm).optimizer_steps:
        assert len(step.ranks) == layout["dp"]
        (count,) = {len(rank) for rank in step.ranks}
        assert count > 0
        assert count % layout["multiple"] == 0


@given(tables, layouts, layouts, algorithms)
def test_denominators_independent_of_packing(rows, one, other, algorithm):
    first, second = plan(rows, **one, **algorithm), plan(rows, cap=32, **other, **algorithm)
    assert first.token_weights == second.token_weights
    assert first.advantages == second.advantages


@given(tables, layouts, algorithms)
def test_weights_add_up(rows, layout, algorithm):
    """In an optimizer step, a sample mean gives every sample 1/n, a token mean every token the same; both add to 1."""
    made = plan(rows, **layout, **algorithm)
    for step in made.optimizer_steps:
        mass = [made.token_weights[row] * int(rows.response[row]) for row in placed(step)]
        if algorithm["loss"] in ("grpo", "gspo"):
            assert mass == pytest.approx([1 / len(mass)] * len(mass))
        elif algorithm["loss"] in ("dapo", "cispo"):
            assert len({made.token_weights[row] for row in placed(step)}) == 1
            assert sum(mass) == pytest.approx(1)
        else:
            assert [made.token_weights[row] for row in placed(step)] == [1 / (len(mass) * L_MAX)] * len(mass)


@given(tables, layouts, algorithms)
def test_deterministic(rows, layout, algorithm):
    assert plan(rows, **layout, **algorithm) == plan(rows, **layout, **algorithm)


@given(tables, layouts, algorithms)
def test_json_round_trip(rows, layout, algorithm):
    made = plan(rows, **layout, **algorithm)
    assert StepPlan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_shuffle_is_pinned():
    """The order comes from a hash of step and group; a change of it would break the replay of old ledgers."""
    rows = table([(5, 10, group, group % 2) for group in range(8)])
    rows = replace(rows, group=rows.group // 2)
    first = [sorted({int(rows.group[row]) for row in placed(step)}) for step in plan(rows, step=0).optimizer_steps]
    orders = {str([placed(step) for step in plan(rows, step=step).optimizer_steps]) for step in range(20)}
    assert first == [[2, 3], [0, 1]]
    assert len(orders) > 3


def test_weights_by_hand():
    rows = table([(5, 2, 0, 1), (5, 6, 0, 0), (5, 8, 1, 1), (5, 8, 1, 1)])
    assert plan(rows, mini_batches=1).token_weights == (1 / 4, 1 / 12, 0, 0)
    assert plan(rows, mini_batches=1, loss="dapo").token_weights == (1 / 8, 1 / 8, 0, 0)
    assert plan(rows, mini_batches=1, loss="dr_grpo").token_weights == (1 / 256, 1 / 256, 0, 0)
    assert plan(rows, mini_batches=1, loss="dr_grpo", dr_grpo_tokens=50).token_weights == (0.01, 0.01, 0, 0)
    assert plan(rows, mini_batches=1, drop_uniform_groups=False).token_weights == (1 / 8, 1 / 24, 1 / 32, 1 / 32)


def test_only_trained_rows_enter_the_batch_statistics():
    """Dropped groups, failed verifications and empty responses do not; uniform groups do when they are trained on."""
    nan = float("nan")
    rows = table([(5, 2, 0, 1), (5, 6, 0, 0), (5, 8, 0, 0), (5, 8, 0, nan), (5, 0, 0, 0), (5, 8, 1, 1), (5, 8, 1, 1)])
    centred = np.array([0.75, -0.25, -0.25, 0, 0, 0, 0])  # the empty response has a verdict: it is in its group's mean
    for drop, trained in ((True, [0, 1, 2]), (False, [0, 1, 2, 5, 6])):
        got = plan(rows, advantage="batch_std", drop_uniform_groups=drop).advantages
        assert got == pytest.approx(centred / (np.std(centred[trained], ddof=1) + 1e-6))


def test_the_capacity_is_what_memory_allows_at_the_cap():
    """By default only tokens count. If each also holds one byte for each token of its row beside 100 of its own, the
    peak is 768 x (100 + 192), and at caps 80 and 32 rows have at most 144 and 96 tokens."""
    rows = table([(60, 30, group // 2, group % 2) for group in range(64)])

    algorithm, batching = AlgorithmConfig(), BatchingConfig(tokens_per_micro_batch=768)

    def capacities(**memory):
        return [plan_step(rows, budget(cap), algorithm, batching, method=METHOD, dp=1, multiple=1, l_max=L_MAX,
                          max_prompt=MAX_PROMPT, **memory).capacity
                for cap in (128, 80, 32)]
    assert capacities() == [768, 768, 768]
    assert capacities(micro_bytes=lambda tokens, longest: tokens * (100 + longest)) == [768, 912, 1144]


@pytest.mark.parametrize("mode", ["packed", "bucketed"])
class TestEdges:
    def test_nothing_to_train_on(self, mode):
        """Every group uniform: no optimizer step, and the figures still are figures."""
        made = plan(table([(5, 9, group, 1.0) for group in (0, 0, 1, 1)]), mode=mode, dp=2, multiple=2)
        assert made.optimizer_steps == ()
        assert made.advantages == made.token_weights == (0.0,) * 4
        assert made.stats() == {"optimizer_steps": 0, "micro_batches": 0, "empty_micro_batches": 0, "capacity": 512,
                                "fill": 1.0, "occupancy": 0.0, "shapes": 0, "imbalance": 1.0, "dropped_groups": 2}

    def test_no_rows_at_all(self, mode):
        assert plan(table([]), mode=mode, dp=2).optimizer_steps == ()

    def test_fewer_rows_than_places(self, mode):
        """Two rows, 2 ranks x 4: every row stands alone, six dummies of width 8, counts equal."""
        made = plan(table([(5, 9, 0, 1.0), (5, 20, 0, 0.0)]), mode=mode, dp=2, multiple=4)
        (step,) = made.optimizer_steps
        assert [len(rank) for rank in step.ranks] == [4, 4]
        assert [len(placed(step)), made.stats()["empty_micro_batches"]] == [2, 6]
        assert {micro.width for micro in made.micro_batches() if not micro.rows} == {8}

    def test_one_giant_among_dwarfs(self, mode):
        rows = table([(64, 128, 0, 1.0)] + [(2, 1, 0, 0.0)] * 20)
        made = plan(rows, mode=mode, tokens=192, dp=2)
        (step,) = made.optimizer_steps
        assert sorted(placed(step)) == list(range(21))
        assert [micro.rows for micro in made.micro_batches() if micro.width == 192] == [(0,)]

    def test_a_giant_alone(self, mode):
        """One row fills the run's capacity, and every other place is a dummy."""
        made = plan(table([(64, 128, 0, 1.0)]), mode=mode, tokens=192, dp=2, multiple=2, drop_uniform_groups=False)
        assert sorted(micro.rows for micro in made.micro_batches()) == [(), (), (), (0,)]
        assert made.stats()["imbalance"] == pytest.approx(2, rel=0.1)

    def test_all_of_length_one(self, mode):
        rows = table([(1, 1, group, 1.0) for group in range(200)])
        made = plan(rows, mode=mode, tokens=192, dp=2, mini_batches=1, drop_uniform_groups=False)
        (step,) = made.optimizer_steps
        assert sorted(placed(step)) == list(range(200))
        assert made.stats()["imbalance"] == (1.0 if mode == "packed" else pytest.approx(1, abs=0.06))
        assert made.stats()["fill"] == (200 / 208 if mode == "packed" else pytest.approx(1 / 8, rel=0.05))

    def test_all_equal_lengths(self, mode):
        made = plan(table([(9, 24, row % 2, row // 2 % 2) for row in range(16)]), mode=mode, tokens=192, dp=2,
                    mini_batches=1)
        assert made.stats()["imbalance"] == 1.0
        assert made.stats()["shapes"] <= 2
        assert made.stats()["fill"] > 0.79

    def test_few_rows_are_split_before_dummies_are_made(self, mode):
        made = plan(table([(5, 9, 0, 1.0)] + [(5, 9, 0, 0.0)] * 3), mode=mode, dp=2, multiple=2)
        assert [micro.rows for micro in made.micro_batches()].count(()) == 0


def test_the_model_decides_what_a_long_row_weighs():
    """A row of 128 beside eight of 16: equal work without attention; where attention counts, four times as much."""
    rows = table([(64, 65, 0, 1.0)] + [(8, 9, 0, 0.0)] * 8)
    for crossover, alone in ((1e9, 128), (16.0, 128 * 9)):
        made = plan_step(
            rows, budget(), AlgorithmConfig(), BatchingConfig(tokens_per_micro_batch=192), dp=2, multiple=1,
            method=METHOD, l_max=L_MAX, max_prompt=MAX_PROMPT,
            crossover=crossover)
        assert [placed_by(rank) for rank in made.optimizer_steps[0].ranks] == [[0], list(range(1, 9))]
        assert made.stats()["imbalance"] == pytest.approx(2 * alone / (alone + 128 * (1 + 16 / crossover)))


def placed_by(rank):
    return sorted(row for micro in rank for row in micro.rows)


def test_buckets_pad_more_than_packs():
    rng = np.random.default_rng(0)
    rows = table([(20, int(length), group, group_sample) for group in range(32)
                  for group_sample, length in enumerate(rng.integers(5, 128, 2))])
    packed, padded, one = (plan(rows, tokens=1024, **mode).stats()["fill"] for mode in (
        {"mode": "packed"}, {"mode": "bucketed", "buckets": 4}, {"mode": "bucketed", "buckets": 1}))
    assert packed > padded > one


def test_widths_used_by_counting():
    rows = table([(5, 9 + 20 * (group % 3), group, float(row)) for group in range(6) for row in range(2)])
    made = plan(rows, mode="bucketed")
    counts = [micro.width for step in made.optimizer_steps for rank in step.ranks for micro in rank]
    assert made.widths_used() == {"widths_used": {str(width): counts.count(width) for width in sorted(set(counts))}}
    assert len(set(counts)) > 1
    assert plan(rows, mode="packed").widths_used() == {}
