"""Real runs of `siri` from a test: small schedules of the shipped configs, in a directory of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

REPO = Path(__file__).resolve().parents[1]
SIRI = Path(sys.executable).parent / "siri"
SMALL = ("budget.cycle_steps=4", "budget.cycles=1", "rollout.prompts_per_step=8", "evaluation.problems=24",
         "checkpoint.every_steps=1")
SIX_STEPS = (*SMALL, "budget.cycle_steps=6")
IN_PROCESS = ("engines.count=1", "engines.in_process=true")
"""Where a second engine, or one whose core has a process of its own, would show nothing that other runs do not."""
TIME_KEYS = ("_s", "_tokens_per_s")


@dataclass(frozen=True)
class RealRun:
    """A run directory and what stands in it."""

    paths: RunDir

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.paths.result.read_text())

    @property
    def records(self) -> list[dict[str, Any]]:
        return jsonl.read(self.paths.metrics)

    def comparable(self) -> list[dict[str, Any]]:
        """The metric records without what may differ between equal runs: seconds, speeds, loads, and who sampled."""
        return [{key: value for key, value in record.items()
                 if not key.endswith(TIME_KEYS) and not key.startswith("fleet_") and key != "reused"}
                for record in self.records]

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The reports of all evaluations, but for their times."""
        return {path.stem: json.loads(path.read_text()) | {"seconds": None}
                for path in self.paths.evaluations.glob("*.json")}

    def weights(self, tag: str = "iter1-expanded") -> dict[str, torch.Tensor]:
        return load_file(self.paths.export / tag / "model.safetensors")


def command(config: str, runs: Path, name: str, *overrides: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [str(SIRI), "train", str(REPO / "configs" / config), *flags, f"name={name}", f"runs_dir={runs}", *overrides]


def siri(*arguments: str, timeout_s: float = 900.0) -> str:
    """Run `siri` to its end; returns what it printed.

    Raises:
        AssertionError: it failed; with its output.
    """
    done = subprocess.run([str(SIRI), *arguments], cwd=REPO, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
