"""Data sets and suites in the config: presets, what is told apart, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from siri_megatron.config import DataConfig, DatasetConfig, EvalConfig, RunConfig, identity_hash, validate

RAW: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-3},
                       "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 2, "cycles": 1}}


def made(**sections: Any) -> RunConfig:
    return validate(RAW | sections, "test")


def test_a_text_is_a_path() -> None:
    assert DataConfig(source="dataset", train="x.jsonl").train == DatasetConfig(path="x.jsonl")


def test_a_preset_gives_hub_name_and_columns() -> None:
    found = DatasetConfig(preset="math500").resolved()
    assert (found.path, found.split, found.prompt_column, found.id_column) == (
        "HuggingFaceH4/MATH-500", "test", "problem", "unique_id")
    assert found.on_hub
    assert DatasetConfig(preset="gsm8k", split="train").resolved().name == "main"


def test_a_preset_with_a_path_gives_the_columns_alone() -> None:
    found = DatasetConfig(preset="gsm8k", path="train.jsonl", answer_column="a").resolved()
    assert (found.path, found.name, found.split) == ("train.jsonl", None, None)
    assert (found.prompt_column, found.answer_column, found.answer_format) == ("question", "a", "gsm8k")


@pytest.mark.parametrize(("path", "on_hub"), [
    ("owner/name", True), ("./owner/name", False), ("/owner/name", False), ("owner/name.jsonl", False),
    ("data/x.parquet", False), ("name", False), ("a/b/c", False), ("../name", False),
    ("open-r1/DAPO-Math-17k.v2", True)])
def test_hub_names_are_told_by_their_form(path: str, on_hub: bool) -> None:
    """Never by what lies on the disk: a config means the same everywhere."""
    assert DatasetConfig(path=path, split="train").on_hub == on_hub


@pytest.mark.parametrize(("keys", "complaint"), [
    ({}, "give path .* or preset"),
    ({"path": "owner/name"}, "owner/name is a data set on the hub, which has splits"),
    ({"preset": "gsm8k"}, "openai/gsm8k is a data set on the hub, which has splits"),
    ({"path": "x.jsonl", "name": "main"}, "name=main is never read, for x.jsonl is a local path"),
    ({"path": "x.jsonl", "revision": "abc"}, "revision=abc is never read"),
    ({"preset": "nothing"}, "Input should be 'gsm8k'"),
])
def test_data_sets_that_are_refused(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DatasetConfig(**keys)


@pytest.mark.parametrize(("keys", "complaint"), [
    ({"train": "x.jsonl"}, "train is never read with source=digit_sum"),
    ({"source": "dataset", "min_terms": 4}, "min_terms is never read with source=dataset"),
    ({"source": "dataset", "tasks": ["chain_sum"]}, "tasks is never read with source=dataset"),
    ({"source": "dataset", "train_problems": 500}, "train_problems is never read with source=dataset"),
    ({"source": "reasoning_gym"}, "needs tasks"),
])
def test_keys_that_nobody_reads(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DataConfig(**keys)


def test_what_decides_the_training_prompts_is_their_fingerprint() -> None:
    """A data set may move, and the held-out one may change; another content, template or filter is another run."""
    def data(**keys: Any) -> str:
        return identity_hash(made(data={"source": "dataset", "train": "x.jsonl", "fingerprint": "f"} | keys))

    same = [data(train="y/z.parquet"), data(eval="e.jsonl"), data(hub_timeout_s=5.0)]
    assert {data(), *same} == {data()}
    other = [data(fingerprint="g"), data(template="{prompt}!"), data(max_prompt_tokens=65),
             data(overlong_prompts="drop")]
    assert len({data(), *other}) == 5


def test_suites() -> None:
    suites = [{"name": "a", "data": {"preset": "aime24"}, "budgets": [8, 300]}, {"name": "b", "data": "b.jsonl"}]
    config = made(evaluation={"suites": suites, "budgets": [8, 16]})
    assert config.evaluation.largest_budget == 300
    assert config.max_model_len == -(-(64 + 300) // 32) * 32
    assert made(evaluation={"budgets": [8]}).evaluation.largest_budget == 8


@pytest.mark.parametrize(("keys", "complaint"), [
    ({"suites": [{"name": "a", "data": "x.jsonl"}] * 2}, "two suites have the name 'a'"),
    ({"suites": [{"name": "held-out", "data": "x.jsonl"}]}, "two suites have the name 'held-out'"),
    ({"problems": 0}, "leaves nothing to evaluate"),
    ({"suites": [{"name": "a/b", "data": "x.jsonl"}]}, "pattern"),
    ({"top_p": 0}, "greater than 0"),
])
def test_suites_that_are_refused(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        EvalConfig(**keys)
