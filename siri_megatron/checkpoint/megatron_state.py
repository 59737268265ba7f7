"""Model and optimizer in megatron's own distributed checkpoint format (`torch_dist`): any layout reads any other's.

What a checkpoint holds: parameters, AdamW moments and step, parameter-group settings, and the rest of the learner's
state (optimizer steps made, which drive the warm-up; weight of the entropy bonus). No state of random generators: every
random stream of a run is a function of (seed, step).

megatron's stock saver is made for asynchronous saves of huge models: it starts a manager process at the first save
(some 5 s, as it imports the program anew) and forks writers at each one, in a process that has gloo threads and a
liveness pipe open. `InProcessSave` writes the very same format from the rank itself.

Traps: the optimizer's sharded state must be built after the model's; loading needs AdamW's moments to exist, which
`is_loading=True` sees to (non-distributed optimizer only).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as torch_checkpoint

from siri_megatron.errors import ModelError
from siri_megatron.learner.mcore import parallel_state
from siri_megatron.learner.runtime import eager_imports

with eager_imports():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        TorchDistSaveShardedStrategy,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )


class TrainedState(Protocol):
    """What a checkpoint is taken of (a Learner)."""

    chunks: list[Any]
    optimizer: Any

    def state(self) -> dict[str, Any]:
        """The rest of the learner's state, JSON."""

    def restore(self, state: dict[str, Any]) -> None: ...


class InProcessSave(TorchDistSaveShardedStrategy):
    """The `torch_dist` format, one file a rank, written and fsynced by the rank itself."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Collective over the default process group."""
        # Main replicas only: megatron knows which of several equal shards is to be written.
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        torch_checkpoint.save(
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=torch_checkpoint.FileSystemWriter(checkpoint_dir, thread_count=1),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False))


def save_state(state: TrainedState, directory: Path) -> None:
    """Write to an existing, empty directory. Collective; returns on rank 0 when every rank's file is on disk."""
    dist_checkpointing.save(_sharded(state, is_loading=False), str(directory), InProcessSave(),
                            async_sharded_save=False)


def load_state(state: TrainedState, directory: Path) -> None:
    """Read into the live model and optimizer, whatever the layout that saved. Collective.

    Raises:
        ModelError: the directory is damaged or belongs to another model.
    """
    try:
        loaded = dist_checkpointing.load(_sharded(state, is_loading=True), str(directory))
    except (CheckpointingException, torch_checkpoint.api.CheckpointException, OSError, KeyError) as error:
        raise ModelError(f"checkpoint {directory} cannot be read: {_reason(error)}",
                         rule="a checkpoint is read by the model that wrote it",
                         fix="remove this checkpoint to resume from the one before it") from error
    for name, chunk in _named(state.chunks):
        chunk.load_state_dict(loaded[name])
    _restore_first_step(loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.restore(loaded["learner"])


def _restore_first_step(optimizer: dict[str, Any]) -> None:
    """Put back AdamW's step count of a checkpoint before the first update: megatron leaves out a count of 0."""
    for part in (optimizer, optimizer.get("optimizer", {})):
        states = part.get("state", {})
        if "common_step" not in states:
            for entry in states.values():
                entry.setdefault("step", torch.tensor(0.0))


def _reason(error: Exception) -> str:
    """One short line: torch's own message is the tracebacks of all ranks, and names every tensor."""
    failures = getattr(error, "failures", {})  # CheckpointException: rank -> (exception, its traceback)
    first = next((failure[0] for failure in failures.values()), error)
    return f"{type(first).__name__}: {str(first).partition(chr(10))[0][:200]}"


def _sharded(state: TrainedState, *, is_loading: bool) -> dict[str, Any]:
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    models = {name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in _named(state.chunks)}
    every = models["model"] if len(models) == 1 else models
    optimizer = state.optimizer.sharded_state_dict(every, is_loading=is_loading, metadata=metadata)
    return {**models, "optimizer": optimizer, "learner": state.state()}


def _named(chunks: list[Any]) -> list[tuple[str, Any]]:
    """megatron's names of the virtual pipeline stages on this rank."""
    return [("model", chunks[0])] if len(chunks) == 1 else [(f"model{i}", chunk) for i, chunk in enumerate(chunks)]
