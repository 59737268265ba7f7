"""Every layout computes one and the same step: that of Hugging Face autograd on unpacked sequences and torch's AdamW.

A row of the table is a layout, a model, a shape of the micro-batches and a loss; adding a layout is one line. The rows
here cover each layout, each pair of layout and model that differs in code (tied or not, biases, norms on heads), both
shapes and all losses; the full product of layouts, models and shapes is the soak test at the end, which prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import layout_runs as runs
import pytest
from layout_runs import Case, Errors, Mode
from models import Kind, write_model
from ranks import RankFailed, Ranks

from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, LearnerConfig

# DO: distributed optimizer
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
    "CP2": {"cp": 2}, "TP2xCP2": {"tp": 2, "cp": 2}, "CP2xDP2": {"cp": 2, "dp": 2}, "PP2xCP2": {"pp": 2, "cp": 2},
    "CP4": {"cp": 4}, "TP2xCP2 SP": {"tp": 2, "cp": 2, "sequence_parallel": True},
    "CP2xDP2 DO overlap": {"cp": 2, "dp": 2, "distributed_optimizer": True, "overlap": True},
    "DP2 overlap": {"dp": 2, "overlap": True}, "DP2 DO": {"dp": 2, "distributed_optimizer": True},
    "DP2 DO overlap": {"dp": 2, "distributed_optimizer": True, "overlap": True},
    "TP2xDP2 DO overlap": {"tp": 2, "dp": 2, "distributed_optimizer": True, "overlap": True},
    "PP2xDP2 VPP2 DO overlap": {"pp": 2, "dp": 2, "vpp": 2, "distributed_optimizer": True, "overlap": True},
}
KINDS: tuple[Kind, ...] = ("qwen2", "qwen3_tied", "llama")
MODES: tuple[Mode, ...] = ("packed", "bucketed")
CASES = [
    Case("1", "qwen2", "packed"), Case("TP2", "qwen2", "packed", "dapo"), Case("TP2", "qwen3_tied", "packed"),
    Case("TP2", "llama", "bucketed"), Case("PP2", "qwen3_tied", "packed"), Case("PP2", "llama", "bucketed", "dr_grpo"),
    Case("DP2", "qwen2", "packed", "dr_grpo"), Case("DP2", "qwen3_tied", "bucketed", "dapo"),
    Case("TP2xPP2", "llama", "packed"), Case("TP2xDP2", "qwen2", "bucketed"),
    Case("PP2xDP2", "qwen3_tied", "packed", "dapo"), Case("PP4", "qwen2", "packed"),
    Case("TP2 SP", "qwen3_tied", "packed"), Case("TP2 SP", "llama", "bucketed"), Case("TP2xPP2 SP", "qwen2", "packed"),
    Case("PP2 VPP2", "qwen3_tied", "packed"), Case("PP2 VPP2", "qwen2", "bucketed"),
    Case("TP2xPP2 VPP2 SP", "qwen3_tied", "packed"), Case("TP2 recompute full", "qwen2", "packed"),
    Case("PP2 recompute full", "llama", "bucketed"), Case("TP2 recompute selective", "qwen3_tied", "packed"),
    Case("DP2 DO overlap", "qwen3_tied", "packed"), Case("DP2 overlap", "qwen2", "bucketed"),
    Case("CP2", "qwen3_tied", "packed"), Case("CP2", "llama", "bucketed", "dapo"),
    Case("PP2xCP2", "qwen2", "packed"), Case("TP2xCP2 SP", "qwen3_tied", "bucketed"),
    Case("CP2xDP2 DO overlap", "qwen2", "packed")]
LIMITS = Errors(logprob=1e-5, loss=1e-6, norm=1e-5, gradient=1e-5, parameter=1e-4)
BFLOAT16 = Errors(logprob=0.2, loss=0.1, norm=0.1, gradient=1.0, parameter=1.0)
"""A rounding moves a ratio over the clip's edge here and there, so single entries of a gradient say little."""


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


def model_dir(models: Path, case: Case) -> Path:
    path = models / case.kind
    return path if path.exists() else write_model(path, case.kind, num_hidden_layers=runs.LAYERS)


def answers(pools: Pools, models: Path, case: Case, fault: str = "", **options: Any) -> tuple[list[Any], Any]:
    """Every rank's answer, and the reference's."""
    path = model_dir(models, case)
    layout = LearnerConfig(**LAYOUTS[case.layout], collective_timeout_s=30.0)
    wanted = runs.reference_step(path, case.loss)
    planned = planned_for(layout, wanted, case)
    found = pools[layout.world_size].run(runs.run_step, runs.settings(path, layout, case, **options), planned,
                                         wanted.rows, fault, timeout_s=120.0)
    return found, wanted


def planned_for(layout: LearnerConfig, wanted: runs.Reference, case: Case) -> StepPlan:
    return runs.plan(wanted.rows, AlgorithmConfig(loss=case.loss, mini_batches=2), layout, case.mode)


def measure(pools: Pools, models: Path, case: Case, fault: str = "", **options: Any) -> Errors:
    return runs.errors(*answers(pools, models, case, fault, **options))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layout_computes_the_reference_step(pools: Pools, models: Path, case: Case) -> None:
    found = measure(pools, models, case)
    assert not above(found), found


def above(found: Errors, limits: Errors = LIMITS) -> list[str]:
    """The columns that are above their limits."""
    return [name for name, value in asdict(found).items() if not value < getattr(limits, name)]


@pytest.mark.parametrize(("fault", "case", "seen"), [
    ("norms not summed", Case("TP2 SP", "qwen2", "packed"), "gradient"),
    ("copies not summed", Case("PP2", "qwen3_tied", "packed"), "gradient"),
    ("copies not summed", Case("PP2 VPP2", "qwen3_tied", "packed"), "gradient"),
    ("own denominators", Case("DP2", "qwen2", "packed"), "loss"),
    ("not reduced", Case("DP2", "qwen2", "packed"), "gradient"),
    ("chunks swapped", Case("PP2 VPP2", "qwen2", "packed"), "logprob"),
    ("not reduced", Case("CP2", "qwen2", "packed"), "gradient"),
    ("attention in the ranks' order", Case("CP2", "qwen2", "packed"), "logprob"),
    ("attention in the ranks' order", Case("CP2", "qwen2", "bucketed"), "logprob"),
    ("own attention gradients", Case("CP2", "qwen2", "packed"), "gradient"),
    ("padding weighs", Case("TP2", "qwen2", "packed"), "gradient"),
    ("padding weighs", Case("TP2", "qwen2", "bucketed"), "gradient"),
    ("no clipping", Case("TP2", "qwen2", "packed"), "parameter")])
def test_a_fault_would_be_seen(pools: Pools, models: Path, fault: str, case: Case, seen: str) -> None:
    """Ten times above the limit, in the column where it belongs."""
    limits = Errors(**{name: 10 * value for name, value in asdict(LIMITS).items()})
    assert seen in above(measure(pools, models, case, fault), limits)


def test_shapes_would_cross(models: Path) -> None:
    """PP2 with a virtual pipeline and megatron-core's own exchange of shapes: what `TwoWayShapes` is for."""
    with ExitStack() as stack, pytest.raises(RankFailed, match=r"EnforceNotMet|op\.preamble|Connection"):
        answers(Pools(stack), models, Case("PP2 VPP2", "qwen2", "packed"), "stock shapes")


@pytest.mark.parametrize(("layout", "chunks", "attentions", "tokens"), [
    ("TP2", 1, 1, 1), ("TP2 SP", 1, 1, 1 / 2), ("TP2 recompute full", 1, 2, 2), ("TP2 recompute selective", 1, 2, 1),
    ("PP2 VPP2", 2, 1, 1), ("CP2", 1, 1, 1 / 2), ("TP2xCP2 SP", 1, 1, 1 / 4)])
def test_a_layout_is_what_it_says(pools: Pools, models: Path, layout: str, chunks: int, attentions: int, tokens: float
                                  ) -> None:
    """Else a layout that is silently not used would pass. attentions: core attentions for each micro-batch; tokens:
    those that a rank puts through a layer, as a share of the plan's."""
    case = Case(layout, "qwen2", "packed")
    found, wanted = answers(pools, models, case)
    planned = planned_for(LearnerConfig(**LAYOUTS[layout]), wanted, case)
    micros = planned.micro_batches()
    for answer in found:
        assert answer.chunks == chunks
        assert answer.attentions == attentions * len(micros)
        assert answer.tokens == tokens * sum(micro.width for micro in micros)


@pytest.mark.parametrize("layout", ["PP2", "DP2", "PP2xDP2", "PP2 VPP2"])
@pytest.mark.parametrize("mode", MODES)
def test_the_step_holds_what_the_suite_claims(models: Path, layout: str, mode: Mode) -> None:
    """Uneven micro-batches, groups in several of them, dummies, data-parallel ranks with fewer rows and with none."""
    case, given = Case(layout, "qwen2", mode), LearnerConfig(**LAYOUTS[layout])
    wanted = runs.reference_step(model_dir(models, case), case.loss)
    first, second = planned_for(given, wanted, case).optimizer_steps
    micros = [micro for rank in first.ranks for micro in rank]
    groups = [{row // runs.SIZE for row in micro.rows} for micro in micros]
    assert sum(map(len, groups)) > len(set.union(*groups))
    assert len({micro.width for micro in micros}) > 1
    assert len({len(micro.rows) for micro in micros}) > 1
    assert any(not micro.rows for micro in second.ranks[0])
    assert not any(runs.rows_of(rank) for rank in second.ranks[1:])
    assert given.dp == len({len(runs.rows_of(rank)) for rank in first.ranks})


@pytest.mark.parametrize("layout", ["TP2 SP", "PP2 VPP2", "DP2", "TP2 recompute full"])
def test_bfloat16_is_near(pools: Pools, models: Path, layout: str) -> None:
    """8 bits of mantissa, in weights and activations of four layers: the same step to within their rounding."""
    found = measure(pools, models, Case(layout, "qwen2", "packed"), dtype="bfloat16")
    assert not above(found, BFLOAT16), found


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_with_every_model(pools: Pools, models: Path, layout: str) -> None:
    """The whole product; prints rows of a table: layout, model, shape, then the errors in the order of `Errors`."""
    bad = []
    for kind, mode in product(KINDS, MODES):
        case = Case(layout, kind, mode)
        found = measure(pools, models, case)
        print(f"\n| {layout} | {kind} | {mode} | {' | '.join(f'{value:.1e}' for value in asdict(found).values())} |",
              flush=True)
        bad += [str(case)] if above(found) else []
    assert not bad
