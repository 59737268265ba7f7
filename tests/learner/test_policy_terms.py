"""Every loss, correction and extra term against the written-out reference, split over ranks and micro-batches.

The reference (grpo_reference.py) knows no shards, so equality also says that splitting changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
import torch
from layout_runs import (
    BUCKET,
    OVERLAP,
    SHARDED,
    TEMPERATURE,
    assert_close,
    exported,
    exported_gradients,
    tensor_errors,
)
from models import load_model
from ranks import Rank, Ranks, run_ranks

from siri_megatron.batching.plan import StepPlan, token_weights
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {"dp": 2}, "sp2": {"tp": 2, "sequence_parallel": True},
    "vpp2": {"pp": 2, "vpp": 2}, "cp2": {"cp": 2}}
MOVED = 1.03
"""The policy's weights over the starting weights: the reference must be the latter."""
DECOUPLED: dict[str, Any] = {"old_logprobs": "decoupled"}
BAND = {"correction_low": 0.85, "correction_high": 1.2}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # layout, mode, algorithm
    "gspo": ("pp2", "packed", {"loss": "gspo", "clip_low": 0.03, "clip_high": 0.04}),
    "gspo-mask": ("dp2", "bucketed", {"loss": "gspo", "clip_low": 0.2, "correction": "mask", **BAND, **DECOUPLED}),
    "gspo-cp": ("cp2", "packed", {"loss": "gspo", "clip_low": 0.03, "clip_high": 0.04, "kl_coef": 0.3}),
    "mask-cp": ("cp2", "packed", {"entropy_coef": 0.2, "correction": "mask", **BAND, **DECOUPLED}),
    "sequence-cp": ("cp2", "bucketed", {"loss": "dapo", "correction": "sequence", "correction_low": 0.97,
                                        "correction_high": 1.03, **DECOUPLED}),
    "cispo": ("dp2", "packed", {"loss": "cispo", "clip_low": 0.2, "clip_high": 0.1}),
    "dr_grpo-sequence": ("tp2", "packed", {"loss": "dr_grpo", "correction": "sequence", "correction_low": 0.97,
                                           "correction_high": 1.03, **DECOUPLED}),
    "decoupled": ("tp2", "bucketed", DECOUPLED),
    "tis-kl": ("dp2", "packed", {"correction": "tis", "correction_high": 1.1, "kl_coef": 0.3, **DECOUPLED}),
    "mask-grpo": ("dp2", "packed", {"correction": "mask", **BAND, **DECOUPLED}),
    "mask-dapo": ("vpp2", "packed", {"loss": "dapo", "correction": "mask", **BAND, **DECOUPLED}),
    "kl-k1": ("tp2", "packed", {"kl_coef": 0.3, "kl_estimator": "k1"}),
    "kl-k2": ("pp2", "packed", {"kl_coef": 0.3, "kl_estimator": "k2"}),
    "entropy": ("sp2", "packed", {"entropy_coef": 0.2}),
    "entropy-kl-mask": ("pp2", "bucketed", {"loss": "dapo", "entropy_coef": 0.2, "kl_coef": 0.3, "correction": "mask",
                                            **BAND, **DECOUPLED})}


def settings(path: Path, layout: dict[str, Any], algorithm: AlgorithmConfig, **optimizer: Any) -> LearnerSettings:
    return LearnerSettings(
        ModelConfig(path=path), LearnerConfig(**layout, collective_timeout_s=30.0),
        OptimizerConfig(**{"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-4} | optimizer), algorithm, TEMPERATURE, "packed",
        tokens_per_micro_batch=160, context=64, seed=1)


def moved_model(path: Path) -> Any:
    model = load_model(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(MOVED)
    return model


class Case:
    """A layout and an algorithm, the plan of a step, and what the reference makes of it."""

    def __init__(self, path: Path, name: str, *, mini_batches: int = 1, clip_grad: float = 1e9,
                 split: dict[str, Any] | None = None) -> None:
        layout, mode, keys = CASES[name]
        self.path, split = path, split or LAYOUTS[layout]
        self.algorithm = AlgorithmConfig(**keys, mini_batches=mini_batches)
        self.given = settings(path, split, self.algorithm, clip_grad=clip_grad)
        self.rows = reference.rollouts(6, 4, moved_model(path), TEMPERATURE)
        self.planned = reference.plan(self.rows, self.algorithm, BatchingConfig(mode=mode, tokens_per_micro_batch=160),
                                      dp=split.get("dp", 1), multiple=4, cp=split.get("cp", 1))

    def expected(self, algorithm: AlgorithmConfig | None = None, ref: Any = None) -> reference.Expected:
        kl = load_model(self.path) if self.algorithm.kl_coef and ref is None else ref
        return reference.train(moved_model(self.path), self.rows, self.planned, algorithm or self.algorithm,
                               self.given.optimizer, TEMPERATURE, reference=kl)


def one_step(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows, fault: str = ""
             ) -> dict[str, Any]:
    """A train step of a policy that has moved away from the starting weights."""
    from siri_megatron.learner import context, correction
    all_reduce, total = correction.dist.all_reduce, context.ContextRanks.total
    with rank.learner(given, bucket=BUCKET) as learner:
        for chunk in learner.chunks:
            for parameter in chunk.parameters():
                parameter.data.mul_(MOVED)
        if fault == "own denominators":
            correction.dist.all_reduce = lambda *_, **__: None
        if fault == "own parts of samples":
            context.ContextRanks.total = lambda _, values: values
        if fault == "reference of now":
            learner.reference = type(learner.reference)(learner.chunks)
        try:
            metrics = learner.train_step(StepPlan.from_json(planned.to_json()), rows)
        finally:
            correction.dist.all_reduce, context.ContextRanks.total = all_reduce, total
        return {"metrics": metrics, "weights": exported(learner), "gradients": exported_gradients(learner)}


@pytest.mark.parametrize("name", CASES)
def test_train_step_is_the_written_out_one(ranks: Ranks, path: Path, name: str) -> None:
    case = Case(path, name)
    expected = case.expected()
    for answer in ranks.run(one_step, case.given, case.planned, case.rows):
        assert answer["metrics"]["loss"] == pytest.approx(expected.losses[0], abs=1e-6)
        assert_close(answer["gradients"], expected.gradients[0], 1e-5)
    if case.algorithm.correction in ("mask", "sequence"):
        tokens = sum(len(row.response_ids) for row in case.rows.rollouts)
        assert answer["metrics"]["correction_fraction"] == pytest.approx(1 - expected.kept / tokens)
        assert 0.1 < answer["metrics"]["correction_fraction"] < 0.9

    case = Case(path, name, mini_batches=2, clip_grad=0.01)  # the policy of the second update is not the old one
    expected = case.expected()
    for answer in ranks.run(one_step, case.given, case.planned, case.rows):
        assert answer["metrics"]["loss"] == pytest.approx(np.mean(expected.losses), abs=1e-6)
        assert answer["metrics"]["grad_norm"] == pytest.approx(np.mean(expected.norms), rel=1e-5)
        assert_close(answer["weights"], expected.weights, 1e-4)


def test_every_term_in_a_layout_of_everything(path: Path) -> None:
    """Chunks, stages, shards, late gathers and recomputation, with each pass before the update and each term in it."""
    split = {"pp": 2, "dp": 2, "vpp": 2, "recompute": "full"} | SHARDED | OVERLAP
    case = Case(path, "entropy-kl-mask", mini_batches=2, clip_grad=0.01, split=split)
    expected = case.expected()
    for answer in run_ranks(one_step, 4, case.given, case.planned, case.rows):
        assert answer["metrics"]["loss"] == pytest.approx(np.mean(expected.losses), abs=1e-6)
        assert answer["metrics"]["grad_norm"] == pytest.approx(np.mean(expected.norms), rel=1e-5)
        assert_close(answer["weights"], expected.weights, 1e-4)


@pytest.mark.parametrize(("name", "fault"), [
    ("mask-grpo", "own denominators"), ("tis-kl", "reference of now"), ("gspo-cp", "own parts of samples"),
    ("mask-cp", "own parts of samples"), ("sequence-cp", "own parts of samples")])
def test_the_comparison_would_see_a_fault(ranks: Ranks, path: Path, name: str, fault: str) -> None:
    case = Case(path, name)
    answer = ranks.run(one_step, case.given, case.planned, case.rows, fault)[0]
    assert max(tensor_errors(answer["gradients"], case.expected().gradients[0]).values()) > 1e-3


@pytest.mark.parametrize("name", ["mask-grpo", "mask-dapo"])
def test_masked_tokens_leave_the_denominator(ranks: Ranks, path: Path, name: str, monkeypatch: Any) -> None:
    """slime PR#657: they were taken out of the sum only, which shrinks the loss by the masked share."""
    case = Case(path, name)
    answer = ranks.run(one_step, case.given, case.planned, case.rows)[0]

    def stay(log_rho: list[float], algorithm: AlgorithmConfig) -> tuple[list[float], list[bool]]:
        factor, kept = corrected(log_rho, algorithm)
        return [one * own for one, own in zip(factor, kept, strict=True)], [True] * len(kept)

    corrected = reference.corrected
    assert max(tensor_errors(answer["gradients"], case.expected().gradients[0]).values()) < 1e-5
    monkeypatch.setattr(reference, "corrected", stay)
    assert max(tensor_errors(answer["gradients"], case.expected().gradients[0]).values()) > 0.02


@pytest.mark.parametrize("layout", ["tp2", "dp2", "vpp2", "cp2"])
def test_the_old_policy_is_exactly_that_of_the_first_update(ranks: Ranks, path: Path, layout: str) -> None:
    """The pass before the updates has the shapes of the updates, so the ratio is 1 to the bit."""
    algorithm = AlgorithmConfig(old_logprobs="decoupled", mini_batches=1)
    rows, split = reference.rollouts(6, 4, moved_model(path), TEMPERATURE), LAYOUTS[layout]
    planned = reference.plan(rows, algorithm, BatchingConfig(tokens_per_micro_batch=160), dp=split.get("dp", 1),
                             multiple=2, cp=split.get("cp", 1))
    metrics = ranks.run(one_step, settings(path, split, algorithm), planned, rows)[0]["metrics"]
    assert metrics["ratio_mean"] == 1.0
    assert metrics["clip_fraction"] == 0.0


def test_decoupled_mismatch_is_of_every_token(ranks: Ranks, path: Path) -> None:
    """pi_old against the engines, although the second update's policy has moved."""
    case = Case(path, "mask-grpo", mini_batches=2)
    metrics = ranks.run(one_step, case.given, case.planned, case.rows)[0]["metrics"]
    model = moved_model(path)
    with torch.no_grad():
        gap = torch.cat([reference.hf_logprobs(model, row.prompt_ids, row.response_ids, TEMPERATURE)
                         - torch.tensor(row.logprobs) for row in case.rows.rollouts]).double()
    rho = gap.exp()
    wanted = {"mismatch_mean_abs": gap.abs().mean(), "mismatch_max_abs": gap.abs().max(),
              "mismatch_kl": (rho - 1 - gap).mean(), "ess": rho.sum() ** 2 / (len(gap) * (rho ** 2).sum())}
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-4), name


def test_the_kl_metric_is_that_of_the_starting_weights(ranks: Ranks, path: Path) -> None:
    case = Case(path, "kl-k2")
    metrics = ranks.run(one_step, case.given, case.planned, case.rows)[0]["metrics"]
    policy, start = moved_model(path), load_model(path)
    with torch.no_grad():
        distance = torch.cat([reference.hf_logprobs(policy, row.prompt_ids, row.response_ids, TEMPERATURE)
                              - reference.hf_logprobs(start, row.prompt_ids, row.response_ids, TEMPERATURE)
                              for row in case.rows.rollouts])
    assert metrics["reference_kl"] == pytest.approx((distance ** 2 / 2).mean().item(), rel=1e-4)
    assert metrics["reference_kl"] > 1e-4


def default_terms(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given) as learner:
        passes: list[bool] = []
        run = learner._run
        learner._run = lambda *args, forward_only=False, **keys: (
            passes.append(forward_only), run(*args, forward_only=forward_only, **keys))[1]
        metrics = learner.train_step(planned, rows)
        return {"passes": passes, "reference": learner.reference is not None, "metrics": set(metrics)}


@pytest.mark.parametrize(("keys", "extra"), [({}, 0), (DECOUPLED, 1), ({"kl_coef": 0.1, **DECOUPLED}, 2)])
def test_only_what_is_asked_for_costs_a_pass(ranks: Ranks, path: Path, keys: dict[str, Any], extra: int) -> None:
    algorithm = AlgorithmConfig(**keys)
    rows = reference.rollouts(6, 4, load_model(path), TEMPERATURE)
    planned = reference.plan(rows, algorithm, BatchingConfig(tokens_per_micro_batch=160), dp=1, multiple=1)
    answer = ranks.run(default_terms, settings(path, {"tp": 2}, algorithm), planned, rows)[0]
    assert answer["passes"] == [True] * extra + [False, False]
    assert answer["reference"] == ("kl_coef" in keys)
    assert ("reference_kl" in answer["metrics"]) == ("kl_coef" in keys)
    assert not {"correction_fraction", "entropy_weight"} & answer["metrics"]


def steered(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given) as learner:
        metrics = [learner.train_step(planned, rows) for _ in range(3)]
        state = learner.state()
    with rank.learner(given) as learner:
        learner.restore(json.loads(json.dumps(state)))
        return {"metrics": metrics, "state": state, "restored": learner.state()}


def test_target_entropy_moves_the_weight_and_is_in_the_learners_state(ranks: Ranks, path: Path) -> None:
    """A target above every entropy: no bonus in the first step, then one delta more after each. (That the state is in
    checkpoints is tested there.)"""
    algorithm = AlgorithmConfig(entropy_target=10.0, entropy_delta=0.01, mini_batches=1)
    rows = reference.rollouts(6, 4, load_model(path), TEMPERATURE)
    planned = reference.plan(rows, algorithm, BatchingConfig(tokens_per_micro_batch=160), dp=2, multiple=1)
    answer = ranks.run(steered, settings(path, {"dp": 2}, algorithm), planned, rows)[0]
    assert [step["entropy_weight"] for step in answer["metrics"]] == pytest.approx([0.0, 0.01, 0.02])
    assert answer["state"] == answer["restored"] == {
        "updates": 3, "entropy": {"coefficient": pytest.approx(0.03), "entropy": answer["metrics"][-1]["entropy"]}}


def two_train_steps(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows, gather: bool
                    ) -> dict[str, np.ndarray]:
    with rank.learner(given, bucket=BUCKET) as learner:
        gather_weights = learner.gather_weights
        if not gather:
            learner.gather_weights = lambda: None
        for _ in range(2):
            learner.train_step(planned, rows)
        learner.gather_weights = gather_weights
        return exported(learner)


def test_weights_that_are_gathered_late_are_whole_before_the_swap(ranks: Ranks, path: Path) -> None:
    """Distributed optimizer with overlapped gathers: after a step the other rank's shard is old until it is gathered,
    and a swap before that would bring the old ones back over the gathered ones."""
    algorithm = AlgorithmConfig(kl_coef=0.3, mini_batches=1)
    rows = reference.rollouts(6, 4, load_model(path), TEMPERATURE)
    planned = reference.plan(rows, algorithm, BatchingConfig(tokens_per_micro_batch=160), dp=2, multiple=1, lr=0.01)
    sharded, plain = (settings(path, {"dp": 2} | keys, algorithm, lr=0.01) for keys in (SHARDED | OVERLAP, {}))
    wanted = ranks.run(two_train_steps, plain, planned, rows, True)[0]
    for found in ranks.run(two_train_steps, sharded, planned, rows, True):
        assert_close(found, wanted, 1e-5)
    assert max(tensor_errors(ranks.run(two_train_steps, sharded, planned, rows, False)[0], wanted).values()) > 1e-4


def split_weights(rank: Rank, seed: int, count: int, aggregation: str) -> list[np.ndarray]:
    """Random samples, some tokens masked, dealt over ranks and micro-batches; the new weights of each sample."""
    import torch.distributed as dist

    from siri_megatron.config import LearnerConfig
    from siri_megatron.learner.correction import Corrected, corrected_weights
    from siri_megatron.learner.losses import Samples
    kept, places, planned = split_case(seed, count, aggregation)
    with rank.control(LearnerConfig(dp=2)) as control:
        dist.init_process_group("gloo", store=control.store(), rank=rank.rank, world_size=2)
        step, order = [], []
        for micro in range(2):
            own = [sample for sample in range(count) if places[sample] == (rank.rank, micro)]
            order += own
            segment = torch.tensor([[number for number, sample in enumerate(own) for _ in kept[sample]] + [0]])
            mask = torch.tensor([[1.0 for sample in own for _ in kept[sample]] + [0.0]])
            stays = torch.tensor([[float(one) for sample in own for one in kept[sample]] + [0.0]])
            weights = torch.tensor([[planned[sample] for sample in own for _ in kept[sample]] + [0.0]])
            samples = [Samples(segment, counts, max(1, len(own))) for counts in (mask, stays)]
            step.append(Corrected(mask, mask > 0, weights, *samples))
        found = corrected_weights([step], aggregation, dist.group.WORLD)[0]
        dist.destroy_process_group()
    flat = torch.cat([one[0, :-1] for one in found]).split([len(kept[sample]) for sample in order])
    return [(sample, one.numpy()) for sample, one in zip(order, flat, strict=True)]


def split_case(seed: int, count: int, aggregation: str) -> tuple[list[np.ndarray], list[tuple[int, int]], np.ndarray]:
    rng = np.random.default_rng(seed)
    kept = [rng.random(rng.integers(1, 9)) < rng.choice([0.0, 0.5, 1.0]) for _ in range(count)]
    places = [(int(rng.integers(2)), int(rng.integers(2))) for _ in range(count)]
    return kept, places, token_weights(np.array([len(one) for one in kept]), LOSS_OF[aggregation], 50)


LOSS_OF = {"sample_mean": AlgorithmConfig(), "token_mean": AlgorithmConfig(loss="dapo"),
           "constant": AlgorithmConfig(loss="dr_grpo")}


@pytest.mark.parametrize("aggregation", LOSS_OF)
@pytest.mark.parametrize("seed", range(3))
def test_denominator_without_masked_tokens(ranks: Ranks, aggregation: str, seed: int) -> None:
    """slime PR#657: the weights are the planner's for a step in which the masked tokens never were."""
    count = 9 + seed
    kept, _, planned = split_case(seed, count, aggregation)
    rest = np.array([one.sum() for one in kept])
    wanted = np.zeros(count)
    wanted[rest > 0] = token_weights(rest[rest > 0], LOSS_OF[aggregation], 50)
    found = dict(pair for answer in ranks.run(split_weights, seed, count, aggregation) for pair in answer)
    assert sorted(found) == list(range(count))
    for sample, weights in found.items():
        np.testing.assert_allclose(weights, kept[sample] * wanted[sample], rtol=1e-6)
    assert not np.allclose(planned, wanted), "nothing was masked"
