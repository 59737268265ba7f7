"""The memory model against what torch's allocator gives the real learner: within 10% on every rank, term by term.

The cases are those of `tools/bench/memory.py` with smaller micro-batches; all of them, whole, are that tool's. What
`make test` has meets every term and every kind of parallelism but cp; `packed` is the case of the negative control.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import Rank, Ranks

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
TARGET = 0.10
TOKENS, LONGEST = 512, 128
SINGLE = ("bfloat16, bucketed", "full", "reference, entropy", *(
    pytest.param(name, marks=pytest.mark.soak) for name in ("mixed lengths", "qwen3", "few tokens")))
DOUBLE = ("tp2, sequence parallel", "pp2 x vpp2", "dp2, distributed, bfloat16", *(
    pytest.param(name, marks=pytest.mark.soak) for name in ("pp2, tied", "cp2")))


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    with Ranks(1) as pool:
        yield pool


def bench() -> Any:
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    import memory
    return memory


def small(name: str) -> Any:
    case = bench().CASES[name]
    return replace(case, tokens=min(case.tokens, TOKENS), longest=min(case.longest, LONGEST))


def on_rank(rank: Rank, name: str, model: str) -> Any:
    case = small(name)
    settings = case.settings(Path(model))
    with rank.control(settings.layout) as control:
        return bench().measure(settings, case, control, name)


def measured(pool: Ranks, name: str, place: Path) -> list[Any]:
    model = bench().write_case_model(place / "model", small(name))
    results: list[Any] = pool.run(on_rank, name, str(model))
    return results


def check(results: list[Any]) -> None:
    for result in results:
        found, wanted = result.measured, result.predicted
        for key in ("parameters", "gradients", "optimizer", "reference"):
            assert getattr(wanted, key) == pytest.approx(getattr(found, key), rel=0.01), f"{key} on rank {result.rank}"
        assert abs(result.error) < TARGET, f"rank {result.rank}: {result.total} predicted, {found.total} measured"
        assert wanted.micro_batches == pytest.approx(found.step, rel=TARGET) or wanted.between > wanted.micro_batches


@pytest.mark.parametrize("name", SINGLE)
def test_one_rank(alone: Ranks, name: str, tmp_path: Path) -> None:
    check(measured(alone, name, tmp_path))


@pytest.mark.parametrize("name", DOUBLE)
def test_two_ranks(ranks: Ranks, name: str, tmp_path: Path) -> None:
    check(measured(ranks, name, tmp_path))


def test_each_term_is_needed(alone: Ranks, tmp_path: Path) -> None:
    """Negative control: without any one of them the total is off by more than 10%."""
    result, = measured(alone, "packed", tmp_path)
    check([result])
    for term in ("parameters", "gradients", "optimizer", "activations", "logits"):
        without = replace(result, predicted=replace(result.predicted, **{term: 0}))
        assert abs(without.error) > TARGET, f"{term} does not matter here"
