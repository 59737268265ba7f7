"""The learner's benchmark: its two sides do equal work, and it runs from end to end. No assertion on time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write_model
from ranks import Rank, Ranks, run_ranks

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
SMALL = ["--caps", "8", "24", "--tokens", "400", "--micro-tokens", "120"]
LAYOUTS = {"one": [], "dp2": ["--dp", "2"], "pp2": ["--pp", "2"], "tp2": ["--tp", "2"]}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "qwen2_tied", vocab_size=38)


@pytest.fixture(scope="module")
def ranks() -> Any:
    with Ranks(2) as pool:
        yield pool


def both_sides(rank: Rank, arguments: list[str], fault: bool = False) -> dict[str, Any]:
    """Losses and gradients of one optimizer step on the same rows: ours, bare, and ours on padded batches."""
    sys.path.insert(0, str(BENCH))
    import learner as bench_module
    options = bench_module.parse(arguments)
    with rank.control(bench_module.bench_settings(options).layout) as control:
        bench = bench_module.Bench(options, control)
        try:
            bench.settings = replace(bench.settings, algorithm=bench.settings.algorithm.model_copy(
                update={"mini_batches": 1}))
            step = bench_module.make_step(options, rank.directory / f"ledger-{rank.rank}", options.caps[0])
            plan = bench.plan(step)
            packs = bench.bare.packs(step, plan)
            if fault:
                packs[0][0].weights.mul_(1.01)
            losses = [loss.item() for loss in bench.bare.train(packs)]
            found = {"bare_losses": losses, "bare": gradients(bench.bare.chunks), "fill": plan.stats()["fill"],
                     "bare_tokens": sum(int(pack.tokens) for part in packs for pack in part),
                     "bare_width": sum(pack.ids.numel() for part in packs for pack in part)}
            for name, one in (("ours", plan), ("padded", bench_module.padded_plan(plan))):
                if name == "padded":  # from the same weights
                    load(bench)
                found[f"{name}_metrics"] = bench.learner.train_step(one, step.rows)
                found[name] = gradients(bench.learner.chunks)
            return found
        finally:
            bench.learner.close()


def load(bench: Any) -> None:
    from siri_megatron.weights.load import load_hf
    load_hf(bench.learner.chunks, bench.learner.architecture, bench.settings.model.path)


def gradients(chunks: list[Any]) -> dict[str, np.ndarray]:
    return {name: parameter.main_grad.numpy().copy() for name, parameter in chunks[0].named_parameters()}


def error(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Largest difference relative to the largest entry of its tensor."""
    assert found.keys() == wanted.keys()
    return max(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max() for name in wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sides_do_equal_work(ranks: Ranks, model_dir: Path, layout: str) -> None:
    arguments = [*SMALL, "--model", str(model_dir), *LAYOUTS[layout]]
    answers = run_ranks(both_sides, 1, arguments) if layout == "one" else ranks.run(both_sides, arguments)
    for answer in answers:
        assert error(answer["bare"], answer["ours"]) < 2e-5
        assert error(answer["padded"], answer["ours"]) < 2e-5
        assert answer["bare_width"] == answer["bare_tokens"]
    tokens = answers[0]["ours_metrics"]["train_tokens"]
    assert tokens == answers[0]["padded_metrics"]["train_tokens"]
    assert sum(answer["bare_tokens"] for answer in answers) == tokens * (1 if layout in ("one", "dp2") else 2)
    last = answers[-1:] if layout != "dp2" else answers  # pipeline: the last stage has the losses
    loss = sum(sum(answer["bare_losses"]) for answer in last)
    assert loss == pytest.approx(answers[0]["ours_metrics"]["loss"], abs=1e-6)


def test_unequal_work_would_be_seen(model_dir: Path) -> None:
    answer = run_ranks(both_sides, 1, [*SMALL, "--model", str(model_dir)], True)[0]
    assert error(answer["bare"], answer["ours"]) > 1e-4


@pytest.mark.parametrize("layout", ["one", "pp2"])
def test_runs_end_to_end(model_dir: Path, layout: str) -> None:
    command = [sys.executable, str(BENCH / "learner.py"), *SMALL, "--model", str(model_dir), "--repeats", "1",
               *LAYOUTS[layout]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines] == ["8", "24"]
    assert "at the worst cap" in done.stdout


@pytest.mark.parametrize("distribution", ["r1", "uniform", "full"])
def test_lengths_are_drawn_under_the_cap(distribution: str) -> None:
    sys.path.insert(0, str(BENCH))
    from lengths import response_lengths
    drawn = response_lengths(distribution, 256, 20000, np.random.default_rng(0))
    assert drawn.min() >= 1
    assert drawn.max() == 256
    if distribution == "r1":
        assert np.median(drawn) == pytest.approx(128, rel=0.05)
        assert (drawn == 256).mean() == pytest.approx(0.23, abs=0.02)


def test_measured_lengths_keep_their_shape(tmp_path: Path) -> None:
    sys.path.insert(0, str(BENCH))
    from lengths import quantile_lengths, read_quantiles
    path = tmp_path / "lengths.json"
    path.write_text('{"quantiles": [100, 200, 400]}')
    drawn = quantile_lengths(read_quantiles(path), 64, 3000, np.random.default_rng(0))
    assert set(drawn.tolist()) == {16, 32, 64}
