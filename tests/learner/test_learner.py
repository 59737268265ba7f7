"""The learner against transformers and torch in one process: log-probs, supervised steps, metrics, repeatability.

That a train step is the same in every layout: test_invariance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
import torch
from layout_runs import TEMPERATURE, assert_close
from models import Kind, load_model, write_model
from ranks import Rank, Ranks, run_ranks

from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

KINDS: tuple[Kind, ...] = ("qwen2_tied", "qwen2", "qwen3", "llama")
LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {"dp": 2}, "cp2": {"cp": 2}}
SEQUENCES = reference.sequences(24)


@pytest.fixture(scope="module", params=KINDS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def tied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "qwen2_tied")


def settings(path: Path, layout: dict[str, int], algorithm: AlgorithmConfig | None = None, **optimizer: Any
             ) -> LearnerSettings:
    return LearnerSettings(
        ModelConfig(path=path), LearnerConfig(**layout, collective_timeout_s=30.0),
        OptimizerConfig(**{"lr": 1e-3, "weight_decay": 0.1} | optimizer), algorithm or AlgorithmConfig(), TEMPERATURE,
        "packed", tokens_per_micro_batch=160, context=64, seed=1)


def all_logprobs(rank: Rank, given: LearnerSettings) -> dict[str, list[list[float]]]:
    with rank.learner(given) as learner:
        return {mode: learner.logprobs(SEQUENCES, mode) for mode in ("packed", "bucketed")}


def largest_error(found: list[list[float]], path: Path, sequences: list[Any] = SEQUENCES) -> float:
    model = load_model(path)
    with torch.no_grad():
        wanted = [reference.hf_logprobs(model, *sequence, TEMPERATURE) for sequence in sequences]
    return max((torch.tensor(own) - one).abs().max().item() for own, one in zip(found, wanted, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_transformers(ranks: Ranks, model_dir: Path, layout: str) -> None:
    for answer in ranks.run(all_logprobs, settings(model_dir, LAYOUTS[layout])):
        assert largest_error(answer["packed"], model_dir) < 1e-5
        assert largest_error(answer["bucketed"], model_dir) < 1e-5


def alone(rank: Rank, given: LearnerSettings) -> list[list[float]]:
    """Rank 0 as a world of its own."""
    from siri_megatron.learner.learner import Learner
    if rank.rank:
        return []
    learner = Learner(given)
    try:
        return learner.logprobs(SEQUENCES)
    finally:
        learner.close()


def test_logprobs_of_a_single_process(ranks: Ranks, tied_dir: Path) -> None:
    assert largest_error(ranks.run(alone, settings(tied_dir, {}))[0], tied_dir) < 1e-5


def test_logprobs_on_two_by_two_ranks(tied_dir: Path) -> None:
    for answer in run_ranks(all_logprobs, 4, settings(tied_dir, {"tp": 2, "pp": 2})):
        assert largest_error(answer["packed"], tied_dir) < 1e-5


def broken_logprobs(rank: Rank, given: LearnerSettings, fault: str, sequences: list[Any]) -> list[list[float]]:
    from siri_megatron.learner import batch
    from siri_megatron.learner.attention import PackedRow

    class OneSegment(PackedRow):
        """Takes the row for one segment: tokens see the sequences before them."""

        @classmethod
        def of(cls, lengths: Any, width: int, device: Any, *context: Any) -> PackedRow:
            return PackedRow.of(np.array([lengths.sum()]), width, device, *context)

    class AbsolutePositions(PackedRow):
        """Positions that count through the whole row: right but for rounding, which grows with them."""

        @classmethod
        def of(cls, lengths: Any, width: int, device: Any, *context: Any) -> PackedRow:
            row = PackedRow.of(lengths, width, device, *context)
            row.positions, row.max_seqlen_q = torch.arange(width), width
            return row

    with rank.learner(given) as learner:
        if fault == "weight":
            next(learner.chunks[0].decoder.parameters()).data.view(-1)[3] += 0.01
        elif fault == "temperature":
            object.__setattr__(learner.settings, "temperature", 0.701)
        else:
            batch.PackedRow = {"segments": OneSegment, "positions": AbsolutePositions}[fault]
        try:
            return learner.logprobs(sequences)
        finally:
            batch.PackedRow = PackedRow


@pytest.mark.parametrize("fault", ["weight", "temperature", "segments"])
def test_the_comparison_would_see_a_fault(ranks: Ranks, tied_dir: Path, fault: str) -> None:
    found = ranks.run(broken_logprobs, settings(tied_dir, {"tp": 2}), fault, SEQUENCES)[0]
    assert largest_error(found, tied_dir) > 1e-4


def test_the_comparison_would_see_absolute_positions(ranks: Ranks, tied_dir: Path) -> None:
    """In a long row; rotary attention is relative, so only the rounding of large angles tells."""
    sequences = reference.sequences(250)
    given = replace(settings(tied_dir, {"tp": 2}), tokens_per_micro_batch=8192)
    found = ranks.run(broken_logprobs, given, "positions", sequences)[0]
    assert largest_error(found, tied_dir, sequences) > 1e-5


def one_step(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given) as learner:
        metrics = learner.train_step(StepPlan.from_json(planned.to_json()), rows)
        weights = {name: value.numpy().copy() for name, value in learner.export_tensors()}
        return {"metrics": metrics, "weights": weights}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_step_gives_the_same_bits(ranks: Ranks, tied_dir: Path, layout: str) -> None:
    """What resuming and replaying exactly rests on."""
    rows, split = reference.rollouts(6, 4, load_model(tied_dir), TEMPERATURE), LAYOUTS[layout]
    planned = reference.plan(rows, AlgorithmConfig(), BatchingConfig(tokens_per_micro_batch=160), dp=split.get("dp", 1),
                             multiple=split.get("pp", 1), cp=split.get("cp", 1))
    first, second = (ranks.run(one_step, settings(tied_dir, split), planned, rows)[0] for _ in range(2))
    assert all(np.array_equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["metrics"] | {"train_s": 0} == second["metrics"] | {"train_s": 0}


def test_metrics_of_the_ratio(ranks: Ranks, tied_dir: Path) -> None:
    """Against their definitions, from log-probs of the starting weights (one optimizer step)."""
    model, algorithm = load_model(tied_dir), AlgorithmConfig(mini_batches=1)
    rows = reference.rollouts(6, 4, model, TEMPERATURE)
    planned = reference.plan(rows, algorithm, BatchingConfig(tokens_per_micro_batch=160), dp=1, multiple=2)
    metrics = ranks.run(one_step, settings(tied_dir, {"pp": 2}, algorithm), planned, rows)[0]["metrics"]
    with torch.no_grad():
        gaps = [reference.hf_logprobs(model, row.prompt_ids, row.response_ids, TEMPERATURE) - torch.tensor(row.logprobs)
                for row in rows.rollouts]
    gap = torch.cat(gaps).double()
    advantage = torch.cat([torch.full((len(one),), planned.advantages[row]) for row, one in enumerate(gaps)])
    ratio = gap.exp()
    stopped = ((ratio > 1.28) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    wanted = {"mismatch_mean_abs": gap.abs().mean(), "mismatch_max_abs": gap.abs().max(),
              "mismatch_kl": (ratio - 1 - gap).mean(), "ratio_mean": ratio.mean(),
              "ess": ratio.sum() ** 2 / (len(gap) * (ratio ** 2).sum()), "clip_fraction": stopped.double().mean()}
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-4), name
    assert 0.1 < metrics["clip_fraction"] < 0.9


def test_a_plan_without_signal_trains_nothing(ranks: Ranks, tied_dir: Path) -> None:
    rows = reference.rollouts(2, 4, load_model(tied_dir), TEMPERATURE)
    for row in rows.rollouts:
        row.reward = 1.0
    planned = reference.plan(rows, AlgorithmConfig(), BatchingConfig(tokens_per_micro_batch=160), dp=1, multiple=1)
    answer = ranks.run(nothing, settings(tied_dir, {"tp": 2}), planned, rows)[0]
    assert answer["metrics"]["optimizer_steps"] == 0
    assert answer["unchanged"]


def nothing(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given) as learner:
        before = {name: value.clone() for name, value in learner.export_tensors()}
        metrics = learner.train_step(planned, rows)
        return {"metrics": metrics,
                "unchanged": all(torch.equal(value, before[name]) for name, value in learner.export_tensors())}


def supervised(rank: Rank, given: LearnerSettings, batch: list[Any], lr: float) -> dict[str, Any]:
    with rank.learner(given) as learner:
        metrics = [learner.sft_step(batch, lr) for _ in range(2)]
        return {"metrics": metrics, "weights": {name: value.numpy().copy() for name, value in learner.export_tensors()}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sft_step_is_that_of_autograd_and_adamw(ranks: Ranks, tied_dir: Path, layout: str) -> None:
    """Weighted negative log-likelihood; each token its own weight."""
    total = sum(len(response) for _, response in SEQUENCES)
    weights = [[(1 + place % 3) / total for place in range(len(response))] for _, response in SEQUENCES]
    batch = [(*sequence, one) for sequence, one in zip(SEQUENCES, weights, strict=True)]
    given = settings(tied_dir, LAYOUTS[layout], clip_grad=0.5)
    model, expected = load_model(tied_dir), reference.Expected()
    lower = OptimizerConfig(**given.optimizer.model_dump() | {"lr": 5e-4})
    adamw = reference.torch_adamw(model, lower)
    for _ in range(2):
        losses = [-(torch.tensor(one) * reference.hf_logprobs(model, *sequence, TEMPERATURE)).sum()
                  for sequence, one in zip(SEQUENCES, weights, strict=True)]
        reference.update(model, adamw, torch.stack(losses).sum(), lower, expected)
    for answer in ranks.run(supervised, given, batch, lower.lr):
        assert [step["loss"] for step in answer["metrics"]] == pytest.approx(expected.losses, abs=3e-6)
        assert [step["grad_norm"] for step in answer["metrics"]] == pytest.approx(expected.norms, rel=1e-5)
        assert_close(answer["weights"],
                     {name: value.detach().numpy() for name, value in model.named_parameters()}, 1e-4)


def few_samples(rank: Rank, given: LearnerSettings) -> float:
    with rank.learner(given) as learner:
        return learner.sft_step([([1, 2], [3, 4], 0.5), ([5], [6, 7, 8], 0.5)], 1e-3)["micro_batches"]


def test_a_virtual_pipeline_with_fewer_samples_than_stages(ranks: Ranks, tmp_path: Path) -> None:
    """As many micro-batches as stages would hang; a rank always has twice as many (torchtitan#775 is a like hang)."""
    path = write_model(tmp_path, "qwen2", num_hidden_layers=4)
    assert ranks.run(few_samples, settings(path, {"pp": 2, "vpp": 2})) == [4.0, 4.0]
