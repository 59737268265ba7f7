"""One ledger trained on in every layout; and the largest layout that two cores bear, with engines.

Layouts differ in the order of floating-point sums: gradients agree to about 1e-6 of their size. AdamW divides by the
root of the second moment, so an entry whose gradient is itself rounding noise may step by up to the learning rate in
either direction; the largest difference of a single weight is therefore stated next to the learning rate, and the
tolerance is on the whole change: |w - w_reference| / |w_reference - w_start| in the Euclidean norm.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from real_run import REPO, SMALL, RealRun, command, siri
from safetensors.torch import load_file

from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.soak, pytest.mark.engine]

LAYOUTS = {"1": (1, 1, 1), "TP2": (2, 1, 1), "PP2": (1, 2, 1), "DP2": (1, 1, 2), "TP2xPP2": (2, 2, 1)}
MODES = ("packed", "bucketed")
TWO_STEPS = (*SMALL, "budget.cycle_steps=2", "evaluation.at_start=false", "evaluation.at_phase_ends=false")
TOLERANCE = 3e-4  # ten times what was measured
MISMATCH = 1e-4
Weights = dict[str, torch.Tensor]


def layout(name: str) -> tuple[str, ...]:
    tp, pp, dp = LAYOUTS[name]
    return f"learner.tp={tp}", f"learner.pp={pp}", f"learner.dp={dp}"


def replay(run: RealRun, name: str, *overrides: str) -> Weights:
    """The final weights of a replay of the run's ledger."""
    siri("train", str(run.paths.config), "--replay", str(run.paths.root), f"name={name}", *overrides)
    return RealRun(RunDir(run.paths.root.parent / name)).weights()


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def relative(found: Weights, reference: Weights, start: Weights) -> float:
    """Size of the difference as a part of the size of what training changed."""
    return float((flat(found) - flat(reference)).norm() / (flat(reference) - flat(start)).norm())


def test_layout_sweep(never_killed: RealRun) -> None:
    began = time.monotonic()
    start = load_file(REPO / "configs" / "models" / "tiny-digits" / "model.safetensors")
    reference = replay(never_killed, "sweep-reference", *layout("1"), "batching.mode=packed")
    differences, largest = {}, 0.0
    for name in LAYOUTS:
        for mode in MODES:
            if (name, mode) == ("1", "packed"):
                continue
            found = replay(never_killed, f"sweep-{name}-{mode}", *layout(name), f"batching.mode={mode}")
            differences[f"{name} {mode}"] = relative(found, reference, start)
            largest = max(largest, float((flat(found) - flat(reference)).abs().max()))
    other = relative(replay(never_killed, "sweep-control", *layout("1"), "optimizer.lr=3.03e-4"), reference, start)
    print(f"\nsoak layouts: replays of one ledger against 1 rank packed, |difference| / |change|: "
          f"{', '.join(f'{name} {value:.1e}' for name, value in differences.items())} (tolerance {TOLERANCE:g}; "
          f"1% more learning rate gives {other:.1e}); largest single difference {largest:.1e} at lr 3e-4; "
          f"{time.monotonic() - began:.0f} s")
    assert max(differences.values()) < TOLERANCE
    assert other > 10 * TOLERANCE


def test_two_by_two_ranks_with_engines(runs: Path) -> None:
    """Four learners and two engines, two steps."""
    began = time.monotonic()
    siri(*command("tiny.yaml", runs, "two-by-two", *TWO_STEPS, *layout("TP2xPP2"))[1:])
    print(f"\nsoak TP2xPP2: {summary(RealRun(RunDir(runs / 'two-by-two')))}; {time.monotonic() - began:.0f} s")


def test_gloo_push(runs: Path) -> None:
    """Weights broadcast to the engines instead of shared memory, two steps."""
    began = time.monotonic()
    siri(*command("tiny.yaml", runs, "gloo", *TWO_STEPS, "push.backend=gloo")[1:])
    print(f"\nsoak gloo push: {summary(RealRun(RunDir(runs / 'gloo')))}; {time.monotonic() - began:.0f} s")


def summary(run: RealRun) -> str:
    """Checks a run of two steps and says what came out.

    Raises:
        AssertionError: it failed, trained nothing, or learner and engines disagree.
    """
    assert run.result["status"] == "success"
    trained = [record for record in run.records if record["optimizer_steps"]]
    worst = max(record["mismatch_max_abs"] for record in trained)
    assert len(run.records) == 2
    assert run.records[1]["weight_version"] == "1"
    assert worst < MISMATCH
    return f"success, 2 steps, {len(trained)} with an update, largest learner-engine difference {worst:.1e}"
