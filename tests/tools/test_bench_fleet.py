"""The benchmark of the fleet: what it gives to bare vLLM is what the fleet had, and its ratios are what they say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
import fleet as bench
from live_fleet import cpu_seconds

from siri_megatron.ledger.schema import Rollout
from siri_megatron.rollout.sampling import request_seed


def row(group: int, sample: int, engine: int) -> Rollout:
    return Rollout(
        step=7, phase="compression", cap=64, cap_version=1, group=group, sample=sample, prompt_id=f"p{group}", tier="",
        answer="", prompt_ids=[group, 1], response_ids=[group, sample], logprobs=[-1.0, -1.0], finish_reason="length",
        truncated=True, outcome="wrong", reward=0.0, budget_rewards=[0.0],
        spans=[{"version": "0", "start": 0, "end": 2}], engine=engine, seconds=1.0)


ROWS = [row(group, sample, group % 2) for group in range(3) for sample in range(4)]


def test_an_engine_gives_its_prompts_to_the_bare_one_on_its_core() -> None:
    first, second = bench.jobs_of(ROWS, engines=2, stop_ids=(5,), run_seed=3)
    assert [job["prompts"] for job in (first, second)] == [[[0, 1], [2, 1]], [[1, 1]]]
    assert first["expected"] == [[group, sample] for group in (0, 2) for sample in range(4)]
    assert {(job["n"], job["cap"], *job["stop_ids"]) for job in (first, second)} == {(4, 64, 5)}


def test_seeds_are_those_of_the_collector_or_none() -> None:
    seeded = bench.jobs_of(ROWS, engines=2, stop_ids=(), run_seed=3)
    assert seeded[0]["seeds"] == [request_seed(3, "step-7", group, f"p{group}") for group in (0, 2)]
    assert bench.jobs_of(ROWS, engines=2, stop_ids=(), run_seed=None)[0]["seeds"] == [None, None]


def test_other_tokens_from_the_same_seeds_are_no_comparison() -> None:
    job = {"expected": [[1, 2]]}
    fleet = SimpleNamespace(config=SimpleNamespace(reproducible=True))
    bench.check_equal(fleet, [job], [{"samples": [[1, 2]]}])
    with pytest.raises(AssertionError, match="other tokens"):
        bench.check_equal(fleet, [job], [{"samples": [[1, 3]]}])
    fleet.config.reproducible = False
    bench.check_equal(fleet, [job], [{"samples": [[1, 3]]}])


def test_ratios() -> None:
    fast = bench.Side(tokens=1000, seconds=2.0, cpu_s=1.0)
    slow = bench.Round(fleet=replace(fast, seconds=4.0, cpu_s=1.5), bare=fast)
    assert (slow.ratio, slow.cpu_ratio) == (0.5, pytest.approx(2 / 3))
    said = bench.line(64, [slow, bench.Round(fast, fast), bench.Round(fast, fast)])
    assert "ratio 1.00 (target >= 0.9), of CPU time 1.00; rounds 0.50, 1.00, 1.00" in said


def test_cpu_seconds_are_counted() -> None:
    before = cpu_seconds(bench.os.getpid())
    sum(at * at for at in range(2_000_000))
    assert cpu_seconds(bench.os.getpid()) > before
    assert cpu_seconds(2**22 + 1) == 0.0, "no such process: pids end at 2**22"
