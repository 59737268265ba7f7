"""The loop on two real ranks, with a source of rollouts that the test controls."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_fleet import alone
from models import write_model
from ranks import Rank, RankFailed, run_ranks

from siri_megatron.budget.controller import PhaseController
from siri_megatron.config import RunConfig, validate
from siri_megatron.errors import DataError, EngineError, StaleFleet
from siri_megatron.ledger.read import closed_steps
from siri_megatron.ledger.retention import remove_steps
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir
from siri_megatron.rollout.source import ReplaySource
from siri_megatron.run import Run

PROMPTS, SAMPLES = 2, 4


def small_config(place: Path, **learner: Any) -> RunConfig:
    return validate({
        "name": "run", "runs_dir": str(place), "model": {"path": str(place / "model")}, "tensorboard": False,
        "data": {"max_prompt_tokens": 8}, "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 2, "cycles": 1},
        "rollout": {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "budget_grid": [8, 16]},
        "optimizer": {"lr": 1e-3}, "learner": {"tp": 2, **learner}, "push": {"timeout_s": 1.0},
        "checkpoint": {"every_steps": 1},
    }, "test")


def write_ledger(config: RunConfig, ledger: Path) -> None:
    """Two steps of made-up rollouts, half of every group right."""
    controller = PhaseController(config.budget)
    for step in range(controller.steps):
        stamp = controller.budget(step)
        writer = StepWriter(ledger, stamp, "test")
        for group in range(PROMPTS):
            writer.append([Rollout(
                step=step, phase=stamp.phase, cap=stamp.cap, cap_version=stamp.version, group=group, sample=sample,
                prompt_id=f"p{group}", tier="", answer="1", prompt_ids=[1, 2, 3],
                response_ids=[4 + sample, 5, 6 + group],
                logprobs=[-3.0, -3.0, -3.0], finish_reason="stop", truncated=False,
                outcome="right" if sample % 2 else "wrong", reward=float(sample % 2), budget_rewards=[0.0, 1.0],
                spans=[{"version": str(step), "start": 0, "end": 3}], engine=0, seconds=0.1)
                for sample in range(SAMPLES)])
        writer.close()


def train_slowly(rank: Rank, config: RunConfig, recorded: Path, generation_s: float, stop_at: int) -> list[int]:
    """Train from a recorded ledger whose steps take `generation_s` to come; stops when step `stop_at` is asked for."""
    from siri_megatron.assemble import assemble
    from siri_megatron.loop import train
    from siri_megatron.rollout.source import ReplaySource

    class Slow(ReplaySource):
        def collect(self, budget: Any, stop: threading.Event, caps: Any) -> dict[str, Any] | None:
            time.sleep(generation_s)
            if budget.step == stop_at:
                stop.set()
            return super().collect(budget, stop, caps)

    run = assemble(config, RunDir(rank.directory), rank=rank.rank, replay=recorded)
    run.source = Slow(RunDir(recorded), config)
    train(run)
    run.close()
    return [run.step, run.committed]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loop")
    write_model(place / "model")
    write_ledger(small_config(place), RunDir(place / "recorded").ledger)
    return place


def test_a_long_generation_never_trips_a_collective(place: Path) -> None:
    """Collectives and the control plane time out after 5 s, generation takes 7 s a step, and may (rollout.timeout_s):
    ranks wait on the control plane as long as rank 0 may wait for the engines (verl#3873)."""
    config = small_config(place, collective_timeout_s=5.0, control_timeout_s=5.0)
    assert run_ranks(train_slowly, 2, config, place / "recorded", 7.0, -1, timeout_s=120) == [[0, 2], [0, 2]]


def test_negative_control_waiting_inside_a_collective(place: Path) -> None:
    """The same wait inside a collective does trip it: the test above would notice."""
    with pytest.raises(RankFailed, match=r"(?i)time"):
        run_ranks(wait_in_a_collective, 2, small_config(place, collective_timeout_s=2.0), 6.0, timeout_s=60)


def wait_in_a_collective(rank: Rank, config: RunConfig, seconds: float) -> None:
    import torch.distributed as dist

    from siri_megatron.learner.settings import LearnerSettings

    with rank.learner(LearnerSettings.of_run(config)) as learner:
        if learner.is_rank0:
            time.sleep(seconds)
        dist.barrier()


def test_a_stop_during_generation_commits_what_was_trained(place: Path) -> None:
    config = small_config(place)
    steps = run_ranks(train_slowly, 2, config, place / "recorded", 0.0, 1, timeout_s=60)
    assert steps == [[0, 1], [0, 1]]


def test_commit_record_says_where_a_run_stands(place: Path) -> None:
    answer = run_ranks(train_and_read, 2, small_config(place), place / "recorded", timeout_s=60)[0]
    assert answer == {"steps": [1, 2], "tags": ["iter1-compressed", "iter1-expanded"], "records": [0, 1]}


def train_and_read(rank: Rank, config: RunConfig, recorded: Path) -> dict[str, Any]:
    from siri_megatron.checkpoint import store
    from siri_megatron.observe import jsonl

    train_slowly(rank, config, recorded, 0.0, -1)
    paths = RunDir(rank.directory)
    found = store.commits(paths) if rank.rank == 0 else []
    return {"steps": [record.step for record in found], "tags": [record.tag for record in found],
            "records": [record["step"] for record in jsonl.read(paths.metrics)]}


def test_ledger_steps_left_behind_by_a_commit_are_removed(place: Path) -> None:
    """keep_ledger=1 of two steps, in the run's own ledger; the one that was replayed from is never touched."""
    config = small_config(place)
    pruned = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep_ledger": 1})})
    kept = [run_ranks(train_own_ledger, 2, given, place / "recorded", timeout_s=60)[0] for given in (pruned, config)]
    assert kept == [[1], [0, 1]]
    assert closed_steps(RunDir(place / "recorded").ledger) == [0, 1]
    with pytest.raises(DataError, match=r"lacks 1 of 2 steps: 0\n"):
        ReplaySource(RunDir(cut_copy(place)), config)


def train_own_ledger(rank: Rank, config: RunConfig, recorded: Path) -> list[int]:
    own = RunDir(rank.directory).ledger
    if rank.rank == 0:
        shutil.copytree(RunDir(recorded).ledger, own)
    train_slowly(rank, config, recorded, 0.0, -1)
    return closed_steps(own)


def cut_copy(place: Path) -> Path:
    copy = place / "pruned"
    shutil.copytree(place / "recorded", copy)
    remove_steps(RunDir(copy).ledger, [0])
    return copy


def test_weights_are_pushed_again_when_all_engines_that_had_them_are_lost() -> None:
    """Twice in one step; the step is then collected all the same."""
    answers: list[Any] = [StaleFleet("lost"), StaleFleet("lost"), {"samples": 8}]
    story: list[Any] = []

    def ask() -> Any:
        story.append("ask")
        answer = answers.pop(0)
        if isinstance(answer, StaleFleet):
            raise answer
        return answer

    run = SimpleNamespace(share=alone, push=story.append)
    assert Run._sampled(run, "collected-7", 7, 1.0, ask) == {"samples": 8}  # type: ignore[arg-type]
    assert story == ["ask", 7, "ask", 7, "ask"]


class PlayedPush:
    """Engines that answer a probe as a learner that is `off` nats away would."""

    def __init__(self, off: float) -> None:
        self.off, self.versions = off, []

    def push(self, version: str) -> dict[str, float]:
        self.versions.append(version)
        return {"push_tries": 1.0, "push_engines": 1.0}

    def generate(self, body: dict[str, Any], deadline: Any) -> dict[str, Any]:
        ids = list(range(body["sampling_params"]["max_tokens"]))
        content = [{"token_id": token, "logprob": -1.0 - self.off} for token in ids]
        span = {"version": self.versions[-1], "start": 0, "end": len(ids)}
        return {"engine 0": {"choices": [{"index": 0, "token_ids": ids, "finish_reason": "length",
                                          "logprobs": {"content": content}, "weight_versions": [span]}]}}


def probing_run(place: Path, off: float, events: list[Any]) -> Run:
    push = {"probe_every": 2, "probe_bound": 0.1}
    run = object.__new__(Run)
    config = small_config(place)
    run.config = config.model_copy(update={"push": config.push.model_copy(update=push)})
    run.pusher, run._stats = PlayedPush(off), {}  # type: ignore[assignment]
    run.learner = SimpleNamespace(  # type: ignore[assignment]
        architecture=SimpleNamespace(vocab=37), logprobs=lambda sequences: [[-1.0] * len(ids) for _, ids in sequences])
    run.share = alone  # type: ignore[method-assign]
    run.recorder = SimpleNamespace(event=lambda *given, **fields: events.append((*given, fields)))  # type: ignore[assignment]
    return run


def test_every_second_push_is_probed(place: Path) -> None:
    events: list[Any] = []
    run = probing_run(place, 0.01, events)
    for version in range(4):
        run.pusher.push(str(version))  # type: ignore[union-attr]
        run._probe(version)
    assert [(kind, step) for kind, step, _ in events] == [("probe", 0), ("probe", 2)]
    assert run._stats["probe_mean_abs"] == pytest.approx(0.01)
    assert set(run._stats) == {"probe_mean_abs", "probe_max_abs", "probe_s"}


def test_a_probe_above_the_bound_ends_the_run_and_is_written_down(place: Path) -> None:
    events: list[Any] = []
    run = probing_run(place, 0.2, events)
    run.pusher.push("2")  # type: ignore[union-attr]
    with pytest.raises(EngineError, match=r"engine 0 has log-probs that differ by 0\.2 nats"):
        run._probe(2)
    assert [kind for kind, *_ in events] == ["probe"]
