"""What one layout and optimizer saved, another reads: the same bits at once, and the same next step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import adamw_step, largest_error, restore, resumed, run_config, same, settings, stored, train, trained
from learners import weights as weights_of
from models import Kind, write_model
from ranks import Rank, Ranks

from siri_megatron.learner.settings import LearnerSettings

TP2, PP2, DP2 = {"tp": 2}, {"pp": 2}, {"dp": 2}
SHARDED = DP2 | {"distributed_optimizer": True}
OVERLAPPED = SHARDED | {"overlap": True}
FOUR = {"tp": 2, "pp": 2}
CONTEXT = {"cp": 2}
CONTEXT_SHARDED = {"cp": 2, "dp": 2, "distributed_optimizer": True, "overlap": True}
FOUR_SHARDED = {"pp": 2, "dp": 2, "distributed_optimizer": True, "overlap": True}
ROUNDING = {"float32": 2e-5, "bfloat16": 2e-2}
"""Largest relative error of the step after a change of layout: its sums have another order, which AdamW enlarges."""


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as pool:
        yield pool


def ranks_of(layout: dict[str, Any], two: Ranks, four: Ranks) -> Ranks:
    return four if settings(Path(), layout).layout.world_size == 4 else two


def soak(*changes: tuple[dict[str, Any], dict[str, Any]]) -> list[Any]:
    return [pytest.param(*change, marks=pytest.mark.soak) for change in changes]


CHANGES = [(TP2, PP2), (TP2, FOUR), (TP2, OVERLAPPED), (OVERLAPPED, FOUR_SHARDED), (SHARDED, DP2),
           (OVERLAPPED, CONTEXT), (CONTEXT_SHARDED, TP2),
           *soak((TP2, CONTEXT_SHARDED), (FOUR, TP2), (OVERLAPPED, TP2), (FOUR_SHARDED, SHARDED), (DP2, OVERLAPPED),
                 (PP2, PP2 | {"distributed_optimizer": True}))]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_of_layout(two: Ranks, four: Ranks, tmp_path: Path, before: dict[str, Any],
                            after: dict[str, Any]) -> None:
    check(two, four, tmp_path, before, after, "qwen2_tied", "float32")


@pytest.mark.parametrize(("before", "after"), [(TP2, OVERLAPPED), *soak((OVERLAPPED, PP2), (SHARDED, DP2))])
def test_a_change_of_layout_in_bfloat16(two: Ranks, four: Ranks, tmp_path: Path, before: dict[str, Any],
                                        after: dict[str, Any]) -> None:
    """Main weights in float32 beside the model's travel too."""
    check(two, four, tmp_path, before, after, "qwen3", "bfloat16")


VIRTUAL = {"pp": 2, "vpp": 2}
VIRTUAL_CHANGES = [(VIRTUAL, TP2), (OVERLAPPED, FOUR_SHARDED | VIRTUAL),
                   *soak((TP2, VIRTUAL), (FOUR_SHARDED | VIRTUAL, VIRTUAL))]


@pytest.mark.parametrize(("before", "after"), VIRTUAL_CHANGES)
def test_several_model_chunks_a_rank(two: Ranks, four: Ranks, tmp_path: Path, before: dict[str, Any],
                                     after: dict[str, Any]) -> None:
    check(two, four, tmp_path, before, after, "qwen2_tied", "float32", num_hidden_layers=4)


def check(two: Ranks, four: Ranks, place: Path, before: dict[str, Any], after: dict[str, Any], kind: Kind,
          dtype: str, **sizes: Any) -> None:
    model, config = write_model(place / "model", kind, **sizes), run_config(place / "model", keep=4)
    ranks_of(before, two, four).run(trained, settings(model, before, dtype), config, place / "a")
    ranks_of(after, two, four).run(resumed, settings(model, after, dtype), config, place / "a", place / "b")
    read, wanted = stored(place / "b", 3), stored(place / "a", 3)
    assert same(read, wanted), largest_error(read, wanted)
    assert any("exp_avg_sq" in name for name in wanted)
    assert any("fp32_param" in name for name in wanted) == (dtype == "bfloat16")
    error, name = largest_error(stored(place / "b", 4), stored(place / "a", 4))
    assert error < ROUNDING[dtype], f"{name}: {error:.2g}"
    assert [adamw_step(place / where, step) for where in "ab" for step in (3, 4)] == [3.0, 4.0] * 2
    print(f"{before} -> {after}: {error:.2g} {name}")


@pytest.mark.parametrize(("layout", "dtype"), [(SHARDED, "float32"), (OVERLAPPED, "float32"), (OVERLAPPED, "bfloat16")])
def test_the_same_layout_goes_on_bit_for_bit(two: Ranks, tmp_path: Path, layout: dict[str, Any], dtype: str) -> None:
    model, config = write_model(tmp_path / "model", "qwen2"), run_config(tmp_path / "model", keep=4)
    two.run(trained, settings(model, layout, dtype), config, tmp_path / "a")
    two.run(resumed, settings(model, layout, dtype), config, tmp_path / "a", tmp_path / "b")
    for step in (3, 4):
        assert same(stored(tmp_path / "b", step), stored(tmp_path / "a", step))
    assert not same(stored(tmp_path / "a", 3), stored(tmp_path / "a", 4))


def test_on_four_ranks_bit_for_bit(four: Ranks, tmp_path: Path) -> None:
    model, config = write_model(tmp_path / "model", "qwen2_tied"), run_config(tmp_path / "model", keep=4)
    four.run(trained, settings(model, FOUR_SHARDED), config, tmp_path / "a")
    four.run(resumed, settings(model, FOUR_SHARDED), config, tmp_path / "a", tmp_path / "b")
    assert same(stored(tmp_path / "b", 4), stored(tmp_path / "a", 4))


def resumed_with_fault(rank: Rank, given: LearnerSettings, root: Path, fault: str) -> dict[str, torch.Tensor]:
    """The step after a resume, with AdamW's step count as megatron leaves it, or lost; or nothing wrong."""
    with rank.learner(given) as learner:
        restore(learner, root, 3)
        (part,) = learner.optimizer.chained_optimizers
        if fault == "megatron's":
            part.load_state_dict(part.state_dict())
        elif fault == "lost":
            for state in part.optimizer.state.values():
                state["step"] = torch.tensor(0.0)
        train(learner, range(3, 5))
        return weights_of(learner)


def test_a_wrong_step_count_would_be_noticed(two: Ranks, tmp_path: Path) -> None:
    """megatron gives all parameters one step tensor, which then counts every parameter's update."""
    model, config = write_model(tmp_path / "model", "qwen2"), run_config(tmp_path / "model", keep=4)
    given = settings(model, SHARDED)
    two.run(trained, given, config, tmp_path / "a")
    right = two.run(resumed_with_fault, given, tmp_path / "a", "none")[0]
    for fault in ("megatron's", "lost"):
        error, _ = largest_error(two.run(resumed_with_fault, given, tmp_path / "a", fault)[0], right)
        print(f"{fault} step: {error:.2g}")
        assert error > 2 * ROUNDING["float32"]
