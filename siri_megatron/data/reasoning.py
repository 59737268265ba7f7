"""Generated tasks of reasoning-gym, where it is installed: question and answer; verification is ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from siri_megatron.data.rows import Row
from siri_megatron.errors import ConfigError

SEEDS = {"train": 0, "eval": 10**9}
"""Far apart: problem i of seed s is that of seed s + i (reasoning-gym 0.1.25). Small tasks may still repeat some."""


def problems(tasks: Sequence[str], split: Literal["train", "eval"], n: int) -> list[Row]:
    """The first n problems of a split; tasks take turns, each is a tier of its own.

    Raises:
        ConfigError: reasoning-gym is not installed, does not know a task, or has no answer to a question of it.
    """
    made = [_task(name, -(-n // len(tasks)), SEEDS[split]) for name in tasks]
    rows = [Row(f"{split}-{name}-{index:05d}", entry["question"], _answer(entry, name), name)
            for index, turn in enumerate(zip(*made, strict=True)) for name, entry in zip(tasks, turn, strict=True)]
    return rows[:n]


def _task(name: str, size: int, seed: int) -> list[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError:
        raise ConfigError("data.source=reasoning_gym, but the package is not installed",
                          rule="reasoning-gym is no part of the lock file", fix="pip install reasoning-gym") from None
    try:
        return list(reasoning_gym.create_dataset(name, size=size, seed=seed))
    except ValueError as error:
        raise ConfigError(f"data.tasks names {name!r}: {error}", rule="data.tasks are tasks of reasoning-gym",
                          fix="take a name of reasoning_gym.factory.DATASETS") from None


def _answer(entry: Mapping[str, Any], name: str) -> str:
    """Tasks with many right answers state none: their own code judges, which is not asked here."""
    if entry["answer"] is None:
        raise ConfigError(f"data.tasks names {name!r}: {str(entry['question'])[:200]!r} has no reference answer",
                          rule="answers are compared with the reference that reasoning-gym gives",
                          fix="leave this task out")
    return str(entry["answer"])
