"""Learner = engines = transformers after every push: families x learner layouts x engine sizes x transports.

A fleet holds an engine of one worker and one of two, so that a push goes to both sizes at once. Three pushes over one
connection, an optimizer step before each. What transformers loads was exported by the same code as what was pushed;
that an export is right at all, the learner's own log-probs say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from engine_fleet import EngineFleet, fleet_config, running_fleet
from hf_reference import greedy, logprobs
from models import write_model
from ranks import Rank, Ranks
from transformers import AutoModelForCausalLM

from siri_megatron.checkpoint.hf_export import export_hf
from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, encode, write_tokenizer
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_api import ROUTE, parse_answer, request_body
from siri_megatron.rollout.fleet import Engine, read_fleet
from siri_megatron.weights.probe import LogprobProbe
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9=", "b4c4d4e4f4=")]
TOLERANCE = 1e-5
TOKENS = 20
PUSHES = 3
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 128, "intermediate_size": 96, "max_position_embeddings": 512,
    "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "head_dim": 32}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}, "tp2 pp2": {"tp": 2, "pp": 2},
    "dp2 sharded": {"dp": 2, "distributed_optimizer": True, "overlap": True}}
KINDS = ("qwen2", "qwen3_tied", "llama")
QUICK = [("tp2", "gloo"), ("pp2", "shm"), ("dp2 sharded", "shm")]
BUCKET = 2000
"""Parameters of a bucket: several are gathered, so that an overlapped one can be late."""
Answer = tuple[list[int], list[float]]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Ranks]]:
    """Learner processes by their number, started when they are asked for."""
    class Pools(dict[int, Ranks]):
        def __missing__(self, world: int) -> Ranks:
            self[world] = Ranks(world).__enter__()
            return self[world]

    made = Pools()
    yield made
    for pool in made.values():
        pool.__exit__()


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """An engine of one worker, in its server's process, and one of two."""
    place = tmp_path_factory.mktemp(request.param)
    path = write_model(place / "model", request.param, **SIZES)
    write_tokenizer(path)
    with running_fleet(fleet_config(path, place / "runs"), tps=(1, 2), in_process=(0,)) as engines:
        yield engines


def settings(path: Path, layout: str) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**LAYOUTS[layout], collective_timeout_s=30),
                           OptimizerConfig(lr=1e-2), AlgorithmConfig(), 1.0, "packed", tokens_per_micro_batch=256,
                           context=160, seed=1)


class Spoilt:
    """A learner whose export has a fault. faults: tensor -> what is done to it."""

    def __init__(self, learner: Any, faults: dict[str, str]) -> None:
        self.learner, self.faults, self.is_rank0 = learner, faults, learner.is_rank0

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.learner.export_tensors():
            yield name, self._spoil(tensor, self.faults.get(name))

    def _spoil(self, tensor: torch.Tensor, fault: str | None) -> torch.Tensor:
        if fault == "perturbed":
            return tensor * 1.001
        return torch.cat(tensor.chunk(2)[::-1]) if fault == "shards swapped" else tensor


def ask(engine: Engine, key: str, prompt: list[int], n: int, temperature: float) -> list[Answer]:
    body = request_body(prompt, n=n, max_tokens=TOKENS, temperature=temperature, seed=7 if temperature else None,
                        stop_ids=())
    answer = httpx.post(engine.url + ROUTE, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120,
                        trust_env=False)
    return [(one.token_ids, one.logprobs) for one in parse_answer(answer.json(), n=n, max_tokens=TOKENS, stop_ids=())]


def answers_of(run_dir: RunDir) -> list[list[list[Answer]]]:
    """Of every engine and prompt: the greedy answer, then two sampled ones."""
    key = run_dir.key.read_text()
    return [[ask(engine, key, prompt, 1, 0.0) + ask(engine, key, prompt, 2, 1.0) for prompt in PROMPTS]
            for engine in read_fleet(run_dir).engines]


def train_and_push(rank: Rank, given: LearnerSettings, config: RunConfig, run_dir: RunDir, faults: dict[str, str],
                   pushes: int) -> list[Any]:
    """After each push: what the engines answered, and the learner's log-probs of it. Saves the weights for HF."""
    found = []
    with rank.learner(given, bucket=BUCKET) as learner:
        push = WeightPush(config, run_dir, Spoilt(learner, faults), learner.control.share)
        for number in range(pushes):
            learner.sft_step([(PROMPTS[0], PROMPTS[2], 0.1), (PROMPTS[1], PROMPTS[number], 0.2)], lr=3e-3)
            push.push(f"v{number}")
            answers = learner.control.share(f"answers-{number}", lambda: answers_of(run_dir))
            sequences = [(prompt, one[0]) for engine in answers for prompt, of in zip(PROMPTS, engine, strict=True)
                         for one in of]
            export_hf(learner, given.model.path, run_dir.root / f"hf-{number}")
            probed = LogprobProbe(push, learner, config, learner.control.share).run(f"v{number}")
            found.append((answers, learner.logprobs(sequences), probed.metrics["probe_mean_abs"]))
        push.close()
    return found


def differences(run_dir: RunDir, found: list[Any], behind: int = 0) -> tuple[list[float], float, int]:
    """Largest |engine - HF| of each engine, largest |learner - HF|, and how many greedy tokens differ.

    behind: compare with the weights of so many pushes before.
    """
    worst, own, odd = [0.0, 0.0], 0.0, 0
    for number, (answers, scores, _) in enumerate(found):
        if number < behind:
            continue
        model = AutoModelForCausalLM.from_pretrained(run_dir.root / f"hf-{number - behind}", dtype=torch.float32)
        best = [greedy(model, prompt, TOKENS) for prompt in PROMPTS]
        learner = iter(scores)
        for at, engine in enumerate(answers):
            for prompt, of, tokens in zip(PROMPTS, engine, best, strict=True):
                odd += of[0][0] != tokens
                for ids, theirs in of:
                    reference = logprobs(model, prompt, ids)
                    worst[at] = max(worst[at], (torch.tensor(theirs) - reference).abs().max().item())
                    own = max(own, (torch.tensor(next(learner)) - reference).abs().max().item())
    return worst, own, odd


def pushed(pools: dict[int, Ranks], fleet: EngineFleet, layout: str, backend: str, faults: dict[str, str] | None = None,
           pushes: int = PUSHES) -> list[Any]:
    given = settings(fleet.model_dir, layout)
    answers: list[Any] = pools[given.layout.world_size].run(
        train_and_push, given, fleet.with_push(backend), fleet.run_dir, faults or {}, pushes)[0]
    return answers


def check_exact(pools: dict[int, Ranks], fleet: EngineFleet, layout: str, backend: str) -> str:
    found = pushed(pools, fleet, layout, backend)
    worst, own, odd = differences(fleet.run_dir, found)
    stale, _, _ = differences(fleet.run_dir, found, behind=1)
    said = (f"engine TP1 {worst[0]:.1e}, TP2 {worst[1]:.1e}, learner {own:.1e}; {odd} greedy answers differ; "
            f"against the push before {min(stale):.1e}")
    assert max(*worst, own) < TOLERANCE, said
    assert odd == 0, said
    assert max(probed for *_, probed in found) < TOLERANCE, "the probe agrees that all is well"
    assert min(stale) > 1e-2, said  # negative control: an optimizer step that was not pushed shows
    return said


@pytest.mark.parametrize("fleet", ["qwen3_tied"], indirect=True)
@pytest.mark.parametrize(("layout", "backend"), QUICK)
def test_exact(pools: dict[int, Ranks], fleet: EngineFleet, layout: str, backend: str) -> None:
    check_exact(pools, fleet, layout, backend)


@pytest.mark.parametrize("fleet", ["qwen3_tied"], indirect=True)
@pytest.mark.parametrize(("fault", "tensor"), [("perturbed", "mlp.down_proj"), ("shards swapped", "self_attn.v_proj")])
def test_a_fault_is_seen_on_every_engine(pools: dict[int, Ranks], fleet: EngineFleet, fault: str, tensor: str) -> None:
    """Negative control: one tensor off by 0.1 %, or its shards in the wrong order."""
    found = pushed(pools, fleet, "tp2", "shm", {f"model.layers.1.{tensor}.weight": fault}, pushes=1)
    worst, own, _ = differences(fleet.run_dir, found)
    assert min(worst) > 3 * TOLERANCE
    assert own < TOLERANCE, "the saved weights are whole"
    assert found[0][2] > TOLERANCE, "the probe sees it too"


@pytest.mark.soak
@pytest.mark.parametrize("fleet", KINDS, indirect=True)
@pytest.mark.parametrize(("layout", "backend"), list(product(LAYOUTS, ("shm", "gloo"))))
def test_exact_everywhere(pools: dict[int, Ranks], fleet: EngineFleet, layout: str, backend: str) -> None:
    began = time.monotonic()
    said = check_exact(pools, fleet, layout, backend)
    print(f"\nsoak push: {fleet.run_dir.root.parents[1].name}, {layout}, {backend}: {said}; "
          f"{time.monotonic() - began:.0f} s")
