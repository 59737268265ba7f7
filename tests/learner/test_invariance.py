"""Every layout computes one and the same step: that of Hugging Face autograd on unpacked sequences and torch's AdamW.

A row of the table is a layout, a model, a shape of the micro-batches and a loss; adding a layout is one line. The rows
here cover each layout, each pair of layout and model that differs in code (tied or not, biases, norms on heads), both
shapes and all losses. The full product is in tests/soak/test_invariance_table.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import layout_runs as runs
import pytest
from layout_runs import Case, Errors
from models import write_model
from ranks import RankFailed, Ranks

from siri_megatron.config import AlgorithmConfig, LearnerConfig

LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {},
    "TP2": {"tp": 2}, "PP2": {"pp": 2}, "DP2": {"dp": 2},
    "TP2xPP2": {"tp": 2, "pp": 2}, "TP2xDP2": {"tp": 2, "dp": 2}, "PP2xDP2": {"pp": 2, "dp": 2}, "PP4": {"pp": 4},
    "TP2 SP": {"tp": 2, "sequence_parallel": True}, "TP2xPP2 SP": {"tp": 2, "pp": 2, "sequence_parallel": True},
    "PP2 VPP2": {"pp": 2, "vpp": 2}, "TP2xPP2 VPP2 SP": {"tp": 2, "pp": 2, "vpp": 2, "sequence_parallel": True},
    "PP2xDP2 VPP2": {"pp": 2, "dp": 2, "vpp": 2},
    "TP2 recompute full": {"tp": 2, "recompute": "full"}, "PP2 recompute full": {"pp": 2, "recompute": "full"},
    "TP2 SP recompute full": {"tp": 2, "sequence_parallel": True, "recompute": "full"},
    "TP2 recompute selective": {"tp": 2, "recompute": "selective"},
}
CASES = [
    Case("1", "qwen2", "packed"), Case("TP2", "qwen2", "packed"),
]
LIMITS = Errors(logprob=1e-5, loss=1e-6, norm=1e-5, gradient=1e-5, parameter=1e-3)


class Pools:
    """Rank processes of each world size, started when first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._pools = stack, dict[int, Ranks]()

    def __getitem__(self, world: int) -> Ranks:
        if world not in self._pools:
            self._pools[world] = self._stack.enter_context(Ranks(world))
        return self._pools[world]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    with ExitStack() as stack:
        yield Pools(stack)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def measure(pools: Pools, models: Path, case: Case, fault: str = "") -> Errors:
    path = models / case.kind
    if not path.exists():
        write_model(path, case.kind, num_hidden_layers=runs.LAYERS)
    layout = LearnerConfig(**LAYOUTS[case.layout], collective_timeout_s=30.0)
    wanted = runs.reference_step(path, case.loss)
    planned = runs.plan(wanted.rows, AlgorithmConfig(loss=case.loss, mini_batches=2), layout, case.mode)
    answers = pools[layout.world_size].run(runs.run_step, runs.settings(path, layout, case), planned, wanted.rows,
                                           fault)
    return runs.errors(answers, wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layout_computes_the_reference_step(pools: Pools, models: Path, case: Case) -> None:
    found = measure(pools, models, case)
    assert found.logprob < LIMITS.logprob
