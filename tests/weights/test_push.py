"""The engines serve exactly the weights pushed last (vLLM 0.32 on CPU leaves a tied lm_head stale after a reload)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_fleet import EngineFleet, alone
from hf_reference import greedy, logprobs, randomised
from transformers import PreTrainedModel

from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.errors import EngineError
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import Engine, accusations
from siri_megatron.weights.fleet_client import Deadline, FleetAddresses, FleetClient
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9=", "b4c4d4e4f4=", "a1b2=")]
TOLERANCE = 1e-5


class ModelSource:
    """A Hugging Face model in the place of a learner."""

    is_rank0 = True

    def __init__(self, model: PreTrainedModel, leave_out: str = "", poison: str = "") -> None:
        self.model, self.leave_out, self.poison = model, leave_out, poison

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.named_parameters():
            if name == self.leave_out:
                continue
            yield name, tensor.detach() * 1.001 if name == self.poison else tensor.detach()


def push_of(engines: EngineFleet, source: ModelSource, backend: str) -> WeightPush:
    return WeightPush(engines.with_push(backend), engines.run_dir, source, alone)


def worst_difference(engines: EngineFleet, model: PreTrainedModel, temperature: float = 1.0) -> float:
    """Largest |engine log-prob - Hugging Face log-prob| over sampled tokens, on every engine."""
    worst = 0.0
    for engine in range(len(engines.urls)):
        for prompt in PROMPTS:
            for sample in engines.sample(engine, prompt, n=2, temperature=temperature):
                reference = logprobs(model, prompt, sample.token_ids, temperature)
                worst = max(worst, (torch.tensor(sample.logprobs) - reference).abs().max().item())
    return worst


@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_engines_follow_every_push(engines: EngineFleet, backend: str) -> None:
    """Log-probs and greedy tokens equal Hugging Face's after each of three pushes over one connection."""
    model = randomised(engines.model_dir, seed=1)
    push = push_of(engines, ModelSource(model), backend)
    for round_ in range(3):
        model = push.learner.model = randomised(engines.model_dir, seed=10 + round_)
        metrics = push.push(f"{backend}-{round_}")
        assert metrics["push_engines"] == 2
        assert metrics["push_bytes"] >= sum(p.numel() * 4 for p in model.parameters())
        assert worst_difference(engines, model) < TOLERANCE
        for engine in (0, 1):
            for prompt in PROMPTS:
                [sample] = engines.sample(engine, prompt, temperature=0.0, seed=None)
                assert sample.token_ids == greedy(model, prompt, len(sample.token_ids))
    push.close()


def test_logprobs_are_those_of_the_sampling_distribution(engines: EngineFleet) -> None:
    """At temperature 0.6 the returned log-probs are tempered; untempered ones are told apart (negative control)."""
    model = randomised(engines.model_dir, seed=2)
    push_of(engines, ModelSource(model), "shm").push("tempered")
    assert worst_difference(engines, model, temperature=0.6) < TOLERANCE
    [sample] = engines.sample(0, PROMPTS[0], temperature=0.6)
    raw = logprobs(model, PROMPTS[0], sample.token_ids, 1.0)
    assert (torch.tensor(sample.logprobs) - raw).abs().max() > 1e-2


def test_perturbed_weight_is_noticed(engines: EngineFleet) -> None:
    """Negative control: one tensor off by 0.1% shows in the log-probs, so the comparison above is sharp enough."""
    model = randomised(engines.model_dir, seed=3)
    poison = "model.layers.1.mlp.down_proj.weight"
    push_of(engines, ModelSource(model, poison=poison), "shm").push("poisoned")
    assert worst_difference(engines, model) > 10 * TOLERANCE


def test_spans_name_the_pushed_version(engines: EngineFleet) -> None:
    model = randomised(engines.model_dir, seed=4)
    push = push_of(engines, ModelSource(model), "shm")
    for version in ("41", "42"):
        push.push(version)
        for engine in (0, 1):
            [sample] = engines.sample(engine, PROMPTS[0], max_tokens=12)
            assert sample.spans == [{"version": version, "start": 0, "end": 12}]
            assert engines.get(engine, "/weight_info").json() == {"weight_version": version}


@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_incomplete_push_is_refused_and_the_next_one_heals(engines: EngineFleet, backend: str) -> None:
    """Stock vLLM keeps old weights for a layer that got none, and packs garbage into a half-filled one."""
    model = randomised(engines.model_dir, seed=5)
    for left_out in ("model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        broken = push_of(engines, ModelSource(model, leave_out=left_out), backend)
        with pytest.raises(EngineError, match=r"engine 0 at .*finish_weight_update"):
            broken.push("broken")
        push_of(engines, ModelSource(model), backend).push("healed")
        assert worst_difference(engines, model) < TOLERANCE


def test_what_a_sender_that_is_gone_has_begun_is_left(engines: EngineFleet) -> None:
    """It was killed in mid-push: the engines are paused, and within an update that vLLM itself would never end."""
    killed = FleetClient(FleetAddresses.read(engines.run_dir), engines.key, keep_requests=True)
    killed.start(Deadline(60.0, "a push"))
    assert engines.post(0, "/start_weight_update").status_code == 500
    killed.close()
    model = randomised(engines.model_dir, seed=6)
    assert push_of(engines, ModelSource(model), "shm").push("after")["push_tries"] == 1
    assert worst_difference(engines, model) < TOLERANCE


def test_wrong_version_is_named(engines: EngineFleet) -> None:
    push_of(engines, ModelSource(randomised(engines.model_dir, seed=6)), "shm").push("7")
    assert engines.post(1, "/update_weight_version", {"new_version": "6"}).status_code == 200
    client = FleetClient(FleetAddresses.read(engines.run_dir), engines.key)
    with pytest.raises(EngineError, match="engine 1 has '6'"):
        client.assert_version("7", Deadline(10, "the test"))
    client.close()


def test_dead_engine_is_named_and_the_export_still_completes(engines: EngineFleet, tmp_path: Path) -> None:
    """No rank may be left waiting inside a gather because rank 0 failed (here: after it had joined the engine)."""
    source = ModelSource(randomised(engines.model_dir, seed=8))
    finished = []

    def exported() -> Iterator[tuple[str, torch.Tensor]]:
        yield from ModelSource.export_tensors(source)
        finished.append(True)

    source.export_tensors = exported  # type: ignore[method-assign]
    apart = RunDir(shutil.copytree(engines.run_dir.root, tmp_path / "apart"))  # an accusation there ends no engine
    push = WeightPush(engines.with_push("shm"), apart, source, alone)
    push.push("joined")
    finished.clear()
    fleet = FleetAddresses.read(apart)
    apart.fleet.write_text(apart.fleet.read_text().replace(fleet.engines[1].url, "http://127.0.0.1:9"))
    assert push._client is not None
    push._client.fleet = FleetAddresses.read(apart)
    with pytest.raises(EngineError, match=r"engine 1 at http://127\.0\.0\.1:9 cannot be reached"):
        push.push("never")
    assert finished == [True]
    assert set(accusations(apart)) == {fleet.engines[1].key}


def test_rank_offsets_are_cumulative() -> None:
    """vLLM's own trainer puts every engine at rank 1."""
    addresses = tuple(Engine(i, f"http://e{i}", tp) for i, tp in enumerate((1, 4, 2)))
    fleet = FleetAddresses(1, addresses)
    assert fleet.rank_offsets() == [1, 2, 6]
    assert fleet.world_size == 8
