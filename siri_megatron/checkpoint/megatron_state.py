"""Model and optimizer in megatron's own distributed checkpoint format (`torch_dist`): any layout reads any other's.

What a checkpoint holds: parameters, AdamW's moments and step (`optimizer_state`), and the rest of the learner's state
(`Learner.state`: optimizer steps made, weight of the entropy bonus). No state of random generators: every random stream
of a run is a function of (seed, step).

Trap: the optimizer's sharded state must be built after the model's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_checkpoint

from siri_megatron.checkpoint.optimizer_state import (
    OPTIMIZER_PREFIX,
    is_gathered,
    load_optimizer,
    metadata,
    sharded_optimizer,
)
from siri_megatron.checkpoint.state_writer import StateWriter, check_lengths
from siri_megatron.checkpoint.sums import first_damaged
from siri_megatron.errors import ModelError, RunFailed
from siri_megatron.learner.runtime import eager_imports

with eager_imports():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingException
    from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME

FIX = "remove this checkpoint to resume from the one before it"


class TrainedState(Protocol):
    """What a checkpoint is taken of (a Learner)."""

    chunks: list[Any]
    optimizer: Any

    def state(self) -> dict[str, Any]:
        """The rest of the learner's state, JSON."""

    def restore(self, state: dict[str, Any]) -> None: ...

    def gather_weights(self) -> None: ...


def plan_save(state: TrainedState, directory: Path, *, background: bool = False, checksums: bool = True) -> StateWriter:
    """Decide which rank writes what into `directory`, without touching the disk. Collective.

    Args:
        background: the state changes while it is written: keep a copy.
        checksums: take those of the files.

    Raises:
        RunFailed: another rank fell out.
    """
    def copy(name: str) -> bool:
        return background and not (is_gathered(state.optimizer) and name.startswith(OPTIMIZER_PREFIX))

    state.gather_weights()
    with together(f"planning checkpoint {directory}"):
        return StateWriter(_sharded(state, is_loading=False), directory, copy=copy, checksums=checksums)


def check_files(directory: Path, files: Mapping[str, Sequence[int]]) -> None:
    """Hold a checkpoint's files against what was written: each rank its share, all with the same outcome. Collective.

    Raises:
        ModelError: a file is damaged.
        RunFailed: another rank fell out.
    """
    found: list[str | None] = [None] * dist.get_world_size()
    own = first_damaged(directory, files, dist.get_rank(), dist.get_world_size())
    with together(f"loading checkpoint {directory}"):
        dist.all_gather_object(found, own)
    for damage in filter(None, found):
        raise _damaged(directory, damage)


def load_state(state: TrainedState, directory: Path) -> None:
    """Read into the live model and optimizer, whatever the layout and optimizer that saved. Collective.

    Raises:
        ModelError: the directory is damaged or belongs to another model.
        RunFailed: another rank fell out.
    """
    _check_readable(directory)
    try:
        with together(f"loading checkpoint {directory}"):
            loaded = dist_checkpointing.load(_sharded(state, is_loading=True), str(directory))
    except (CheckpointingException, torch_checkpoint.api.CheckpointException, OSError, KeyError) as error:
        raise _unreadable(directory, error) from error
    for name, chunk in _named(state.chunks):
        chunk.load_state_dict(loaded[name], strict=False)  # reading has seen to it that no weight is missing
    load_optimizer(state.optimizer, loaded["optimizer"])
    state.restore(loaded["learner"])


def _check_readable(directory: Path) -> None:
    """The small files that say what the large ones hold, and the lengths of these. Every rank looks at all of them, so
    that none waits for one that failed, or goes on where another's file is damaged. For checkpoints without checksums.

    megatron and torch take them to be whole: on others they fail in any way, none of which speaks of a checkpoint.
    """
    try:
        json.loads((directory / CONFIG_FNAME).read_text())
        torch.load(directory / COMMON_STATE_FNAME, map_location="cpu", weights_only=True)
        check_lengths(directory, torch_checkpoint.FileSystemReader(directory).read_metadata().storage_data.values())
    except Exception as error:
        raise _unreadable(directory, error) from error


def _unreadable(directory: Path, error: Exception) -> ModelError:
    return ModelError(f"checkpoint {directory} cannot be read: {_reason(error)}",
                      rule="a checkpoint is read by the model that wrote it", fix=FIX)


def _damaged(directory: Path, damage: str) -> ModelError:
    return ModelError(f"checkpoint {directory} is damaged: {damage}",
                      rule="every file is as it was written (checkpoint.checksums)", fix=FIX)


@contextmanager
def together(what: str) -> Iterator[None]:
    """Collectives of a save or a load: they end at the latest after learner.collective_timeout_s, and say what broke.

    Raises:
        RunFailed: another rank fell out.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's own
        if isinstance(error, torch_checkpoint.api.CheckpointException):
            raise
        raise RunFailed(f"rank {dist.get_rank()}, {what}: {_reason(error)}", rule="every rank takes part",
                        fix="see logs/learner-*.log for the rank that fell out; a slow one needs a longer "
                            "learner.collective_timeout_s") from error


def _reason(error: Exception) -> str:
    """One short line: torch's own message is the tracebacks of all ranks, and names every tensor."""
    failures = getattr(error, "failures", {})  # CheckpointException: rank -> (exception, its traceback)
    first = next((failure[0] for failure in failures.values()), error)
    return f"{type(first).__name__}: {str(first).partition(chr(10))[0][:200]}"


def _sharded(state: TrainedState, *, is_loading: bool) -> dict[str, Any]:
    models = {name: stored_weights(chunk) for name, chunk in _named(state.chunks)}
    every = models["model"] if len(models) == 1 else models
    return {**models, "optimizer": sharded_optimizer(state.optimizer, every, is_loading=is_loading),
            "learner": state.state()}


def stored_weights(chunk: Any) -> dict[str, Any]:
    """A model chunk's sharded entries: the same under either layer spec.

    Left out is the state of 8-bit scaling (`_extra_state`): it is empty, and the specs differ in which layers have it.
    """
    entries = chunk.sharded_state_dict(metadata=metadata())
    return {name: entry for name, entry in entries.items() if not name.endswith("_extra_state")}


def _named(chunks: list[Any]) -> list[tuple[str, Any]]:
    """megatron's names of the virtual pipeline stages on this rank."""
    return [("model", chunks[0])] if len(chunks) == 1 else [(f"model{i}", chunk) for i, chunk in enumerate(chunks)]
