"""reasoning-gym: the mapping, with a module of its shape; the real one where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from siri_megatron.config import DataConfig
from siri_megatron.data.reasoning import problems
from siri_megatron.data.rows import Row
from siri_megatron.errors import ConfigError


def create_dataset(name: str, *, size: int, seed: int) -> list[dict[str, Any]]:
    if name == "none":
        raise ValueError(f"Dataset '{name}' not registered")
    answers = [None if name == "open" else i for i in range(size)]
    return [{"question": f"{name} {seed}/{i}?", "answer": answer, "metadata": {}} for i, answer in enumerate(answers)]


def test_tasks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))
    assert problems(("sum", "sort"), "train", 3) == [
        Row("train-sum-00000", "sum 0/0?", "0", "sum"), Row("train-sort-00000", "sort 0/0?", "0", "sort"),
        Row("train-sum-00001", "sum 0/1?", "1", "sum")]
    assert problems(("sum",), "eval", 1)[0].prompt == "sum 1000000000/0?"
    with pytest.raises(ConfigError, match=r"data\.tasks names 'none': .*not registered"):
        problems(("none",), "train", 3)


def test_a_task_without_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """rush_hour, graph_color, rubiks_cube, ...: the word None as the reference would make every answer wrong."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))
    with pytest.raises(ConfigError, match=r"data\.tasks names 'open': 'open 0/0\?' has no reference answer"):
        problems(("sum", "open"), "train", 4)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="the package is not installed") as caught:
        problems(("chain_sum",), "train", 3)
    assert "pip install reasoning-gym" in caught.value.fix


def test_the_real_one() -> None:
    pytest.importorskip("reasoning_gym")
    first, second = (problems(("chain_sum", "leg_counting"), "train", 10) for _ in range(2))
    assert first == second
    assert len({row.id for row in first}) == 10
    assert {row.tier for row in first} == {"chain_sum", "leg_counting"}
    assert all(row.answer.lstrip("-").isdigit() for row in first)
    train, held_out = ({row.prompt for row in problems(("chain_sum",), split, 500)} for split in ("train", "eval"))
    assert len(train & held_out) < 25  # sums of one digit repeat by chance; neighbouring seeds share all but one


def test_tasks_are_needed() -> None:
    with pytest.raises(ValueError, match="needs tasks"):
        DataConfig(source="reasoning_gym")
