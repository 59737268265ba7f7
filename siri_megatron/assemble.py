"""Puts one rank's run together: control plane, learner, and on rank 0 the connections and files.

Starting, resuming and replaying differ only here; the loop does not know which it is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from siri_megatron.checkpoint import store
from siri_megatron.checkpoint.record import CommitRecord
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.errors import ConfigError
from siri_megatron.launch.stop import watch_stop
from siri_megatron.learner.control import ControlPlane
from siri_megatron.learner.learner import Learner
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.observe.recorder import Recorder
from siri_megatron.observe.spans import RECORDED_RANKS, SpanLog
from siri_megatron.paths import RunDir
from siri_megatron.rollout.source import CollectorSource, ReplaySource, Source
from siri_megatron.run import Run
from siri_megatron.weights.push import WeightPush


def assemble(config: RunConfig, paths: RunDir, *, rank: int, replay: Path | None) -> Run:
    """One rank's run at its starting point: the newest commit if there is one, else step 0."""
    control = ControlPlane.open(paths, rank, config.learner.world_size, config.learner, host=config.engines.host)
    learner = Learner(LearnerSettings.of_run(config), control)
    source: Source = ReplaySource(RunDir(replay), config) if replay else CollectorSource(paths, config)
    role = f"learner-{rank}"
    share = partial(control.share, timeout_s=config.push.timeout_s + config.learner.control_timeout_s)
    run = Run(config, paths, control, learner, source,
              pusher=None if replay else WeightPush(config, paths, learner, share), stop=watch_stop(paths),
              spans=SpanLog(paths.spans / f"{role}.jsonl", role) if rank < RECORDED_RANKS else None)
    removed = resume(run)
    if learner.is_rank0:
        run.recorder = Recorder(paths, run.step, tensorboard=config.tensorboard, max_failed=config.reward.max_failed)
        run.recorder.event("resume" if run.step else "start", run.step)
        for what in removed:
            run.recorder.event("recovered", run.step, message=what)
    return run


def resume(run: Run) -> list[str]:
    """Continue from the newest commit, decided by rank 0, if there is one; returns what a kill had left half-written.

    Raises:
        ConfigError: the commit is of a run with another model, data or method.
        ModelError: it is damaged.
    """
    found = run.share("resume", lambda: resume_point(run.paths))
    removed = list(found["removed"])
    if found["record"] is None:
        return removed
    record = CommitRecord.from_json(found["record"])
    check_identity(record, run.config)
    store.restore(run.paths, run.learner, record)
    run.decisions.restore(record.decisions)
    run.step, run.committed, run.pending_tag = record.step, record.step, record.tag
    return removed


def resume_point(paths: RunDir) -> dict[str, Any]:
    """{"record": the newest commit or None, "removed": what a killed save or export had left half-written}"""
    removed = store.recover(paths)
    record = store.latest(paths)
    return {"record": record.to_json() if record else None, "removed": removed}


def check_identity(record: CommitRecord, config: RunConfig) -> None:
    if record.identity != identity_hash(config):
        raise ConfigError(f"the checkpoint of step {record.step} belongs to identity {record.identity}, "
                          f"the config now has {identity_hash(config)}",
                          rule="model, data, reward, budget, rollout, optimizer, algorithm, phases, batching and "
                                "seed stay",
                          fix="resume with the run's own config.yaml, or start a new run under another name")
