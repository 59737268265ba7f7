"""Learners that train, commit and resume, for the tests of this package; and an independent reader of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ranks import Rank

from siri_megatron.checkpoint import saver, store
from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig, validate
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir

Weights = dict[str, torch.Tensor]
BUCKET = 3000
"""Parameters in a bucket: several buckets, as a real model has when communication is overlapped."""


def run_config(model_dir: Path, **checkpoint: Any) -> RunConfig:
    return validate({"name": "x", "model": {"path": str(model_dir)}, "optimizer": {"lr": 1e-3},
                     "budget": {"l_min": 16, "l_max": 32, "cycle_steps": 4, "cycles": 2},
                     "checkpoint": checkpoint}, "test")


def settings(model_dir: Path, layout: dict[str, Any], dtype: str = "float32") -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=model_dir, dtype=dtype), LearnerConfig(**layout, collective_timeout_s=30),
                           OptimizerConfig(lr=1e-2, warmup_steps=5, weight_decay=0.1), AlgorithmConfig(), 1.0,
                           "packed", tokens_per_micro_batch=14, context=64, seed=1)


def train(learner: Any, steps: range) -> None:
    """Supervised steps of several micro-batches a rank."""
    for step in steps:
        prompt, response = [1 + step, 2, 3], [4, 5 + step, 6, 7]
        learner.sft_step([(prompt, response, 0.02), (prompt[:2], response[:3], 0.03)] * 8, lr=1e-2 / (1 + step))


def weights(learner: Any) -> Weights:
    return {name: tensor.clone() for name, tensor in learner.export_tensors()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def commit(learner: Any, config: RunConfig, root: Path, step: int) -> None:
    saver.save(RunDir(root), learner, config, step=step, tag=None, decisions={"controller": {"version": 1}})


def restore(learner: Any, root: Path, step: int) -> None:
    record = next(record for record in store.commits(RunDir(root)) if record.step == step)
    store.restore(RunDir(root), learner, record)


def trained(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> None:
    """Three steps, a commit, one more step, a commit."""
    with rank.learner(given, bucket=BUCKET) as learner:
        train(learner, range(3))
        commit(learner, config, root, 3)
        train(learner, range(3, 4))
        commit(learner, config, root, 4)


def resumed(rank: Rank, given: LearnerSettings, config: RunConfig, source: Path, root: Path) -> None:
    """From the commit at step 3 of `source`: what was read is committed again at `root`, and the step after it."""
    with rank.learner(given, bucket=BUCKET) as learner:
        restore(learner, source, 3)
        commit(learner, config, root, 3)
        train(learner, range(3, 4))
        commit(learner, config, root, 4)


def stored(root: Path, step: int) -> Weights:
    """Every tensor of a checkpoint, whole, as torch's own reader sees it in one process: parameters and moments."""
    import torch.distributed.checkpoint as torch_checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    directory = RunDir(root).checkpoint(step) / store.STATE
    metadata = torch_checkpoint.FileSystemReader(directory).read_metadata()
    found: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)}
    torch_checkpoint.load(found, checkpoint_id=directory, no_dist=True)
    return {name: _unpadded(name, tensor) for name, tensor in found.items()}


def _unpadded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Rows that pad the vocabulary (37) depend on the layout."""
    return tensor[:37] if "embedding" in name or "output_layer" in name else tensor


def adamw_step(root: Path, step: int) -> float:
    common = torch.load(RunDir(root).checkpoint(step) / store.STATE / "common.pt")
    return float(common["optimizer"]["step"])


def largest_error(found: Weights, wanted: Weights) -> tuple[float, str]:
    """Largest error of a tensor relative to its largest entry, and which."""
    assert found.keys() == wanted.keys()
    return max(((found[name].float() - wanted[name].float()).abs().max().item()
                / max(wanted[name].float().abs().max().item(), 1e-30), name) for name in wanted)
