"""A learner rank that raises in mid-export: nobody waits, the rank is named, and the next learners' push succeeds.

The engines are played (played_engines.py): what they do while a sender is gone is the same as for real ones (they wait
for the next bucket, or for a group until its time is up), and the learners are real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import fleet_config
from models import make_model, write_model
from ranks import Rank, RankFailed, run_ranks

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.files import read_json
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir
from siri_megatron.weights.push import WeightPush


def settings(path: Path, layout: str) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**{layout: 2}, collective_timeout_s=60),
                           OptimizerConfig(lr=1e-3), AlgorithmConfig(), 1.0, "packed", 160, 64, 1)


class Raises:
    """A learner whose rank fails after some tensors of its export."""

    def __init__(self, learner: Any, after: int) -> None:
        self.learner, self.after, self.is_rank0 = learner, after, learner.is_rank0

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        from siri_megatron.weights.export import export_tensors

        tensors = export_tensors(self.learner.chunks, self.learner.architecture, bucket_bytes=4096)
        for number, item in enumerate(tensors):
            if number == self.after:
                raise OSError("the disk that this rank reads is gone")
            yield item


def push_once(rank: Rank, given: LearnerSettings, config: RunConfig, run_dir: RunDir, raising: int | None,
              version: str) -> None:
    """As a learner process does it: `guarded_main` is its outermost frame, and nothing is closed after an error."""
    from siri_megatron.launch.lastwords import guarded_main
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.learner import Learner
    from siri_megatron.weights import senders

    senders.BUCKET_BYTES = 4096  # in this process only

    def work() -> None:
        control = ControlPlane.open(RunDir(rank.directory), rank.rank, rank.world, given.layout)
        learner = Learner(given, control)
        source = Raises(learner, 8) if rank.rank == raising else Raises(learner, 10**9)
        push = WeightPush(config, run_dir, source, control.share)
        push.push(version)
        push.close()

    if rank.rank == raising:
        guarded_main(f"learner-{rank.rank}", run_dir, work)
    work()


def push_config(place: Path, backend: str) -> RunConfig:
    given = fleet_config(Path("model"), place / "runs")
    push = given.push.model_copy(update={"backend": backend, "timeout_s": 30.0, "max_tries": 1})
    return given.model_copy(update={"push": push})


@pytest.mark.parametrize(("layout", "backend", "raising"), [("tp", "gloo", 0), ("pp", "shm", 1)])
def test_a_rank_raises_in_mid_export(tmp_path: Path, layout: str, backend: str, raising: int) -> None:
    from played_engines import played_fleet  # vLLM, which the ranks, who import this module too, do without

    path = write_model(tmp_path / "model", "qwen2", num_hidden_layers=4)
    wanted = make_model("qwen2", num_hidden_layers=4).state_dict()
    given, told = settings(path, layout), push_config(tmp_path, backend)
    run_dir = RunDir(told.run_dir)
    run_dir.root.mkdir(parents=True)
    run_dir.key.write_text("key")
    with played_fleet((1, 2)) as (played, engines):
        entries = [{"index": e.index, "url": e.url, "tp": e.tp} for e in engines]
        run_dir.fleet.write_text(json.dumps({"epoch": 1, "engines": entries, "model": "policy"}))
        with pytest.raises(RankFailed) as caught:
            run_ranks(push_once, 2, given, told, run_dir, raising, "broken")
        said = str(caught.value)
        assert f"on rank {raising}: the process died" in said, said
        assert "Error" in said.partition(f"on rank {1 - raising}: ")[2], said
        assert "no answer in time" not in said, "the other rank leaves the collective at once"
        assert {engine.version for engine in played} == {""}, "nobody took the version of a push that failed"
        words = read_json(run_dir.failures / f"learner-{raising}.json")
        assert words is not None
        assert words["role"] == f"learner-{raising}"
        assert words["what"].startswith("OSError: the disk that this rank reads is gone")

        run_ranks(push_once, 2, given, told, run_dir, None, "whole")
        for engine in played:
            assert engine.version == "whole"
            for worker in engine.workers:
                found = worker.model.given
                assert all(torch.equal(found[name], wanted[name]) for name in found)
                assert set(found) == set(wanted)
    assert not any(file.exists() for file in run_dir.shared_weights)
