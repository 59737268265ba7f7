"""Prompt sets: length filter, fingerprint, suites, sources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import DataConfig, validate
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import write_tokenizer
from siri_megatron.data.prompts import Prompt, PromptSet, eval_prompts, suite_prompts, train_prompts
from siri_megatron.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": 32}))
    return TextCodec.load(path)


def write_rows(path: Path, *lengths: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": "a" * n, "answer": 1}) + "\n" for n in lengths))
    return path


def dataset(path: Path, **keys: Any) -> DataConfig:
    return DataConfig(source="dataset", train=path, eval=path, **keys)


def test_a_prompt_that_cannot_be_encoded_is_named(tmp_path: Path, codec: TextCodec) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "1a2", "answer": "3"}\n{"prompt": "What is 1+1?", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"prompt train-000002 cannot be encoded: .*UNK.*; it begins 'What is 1\+1\?'"):
        train_prompts(dataset(path), codec)


def test_lengths_are_those_of_the_tokens(codec: TextCodec, tmp_path: Path) -> None:
    config = dataset(write_rows(tmp_path / "p.jsonl", 1, 2, 9, 5), template="{prompt}|", max_prompt_tokens=11)
    train = train_prompts(config, codec)
    assert [len(prompt.token_ids) for prompt in train] == [3, 4, 11, 7]
    assert (train.dropped, train.longest) == (0, ("p-000003", 11))
    assert len(eval_prompts(config, codec, 3)) == 3
    with pytest.raises(DataError, match="2 of 4 prompts have more than 6 tokens") as caught:
        train_prompts(config.model_copy(update={"max_prompt_tokens": 6}), codec)
    assert "p-000003, has 11" in caught.value.what


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(2, 31))
def test_counted(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], limit: int) -> None:
    """Dropped is exactly what is too long (BOS counts); what stays keeps its order and its names."""
    path = write_rows(tmp_path_factory.getbasetemp() / "counted.jsonl", *lengths)
    config = dataset(path, max_prompt_tokens=limit, overlong_prompts="drop")
    fitting = [(f"counted-{number:06d}", n + 1) for number, n in enumerate(lengths, 1) if n + 1 <= limit]
    if not fitting:
        with pytest.raises(DataError, match=f"{len(lengths)} of {len(lengths)} prompts"):
            train_prompts(config, codec)
        return
    found = train_prompts(config, codec)
    assert [(prompt.id, len(prompt.token_ids)) for prompt in found] == fitting
    assert found.dropped == len(lengths) - len(fitting)
    assert found.longest[1] == max(lengths) + 1


def test_what_is_dropped_is_said(codec: TextCodec, tmp_path: Path) -> None:
    config = dataset(write_rows(tmp_path / "p.jsonl", 3, 8, 9), max_prompt_tokens=4, overlong_prompts="drop")
    assert train_prompts(config, codec).sentence() == (
        "1 prompts; 2 of 3 dropped as too long, the longest, p-000003, has 10 tokens")


def test_fingerprint() -> None:
    one, two = Prompt("1", "x", (1, 2), "3"), Prompt("2", "y", (4,), "5")
    first = PromptSet((one, two), 0, ("1", 2)).fingerprint
    assert PromptSet((replace(one, text="z"), two), 7, ("", 0)).fingerprint == first
    changed = [(two, one), (one,), (replace(one, id="0"), two), (replace(one, token_ids=(1, 3)), two),
               (replace(one, answer="4"), two), (replace(one, token_ids=(1,)), replace(two, token_ids=(2, 4)))]
    assert len({first, *(PromptSet(prompts, 0, ("", 0)).fingerprint for prompts in changed)}) == 7


def test_the_same_prompts_from_anywhere_are_the_same(codec: TextCodec, tmp_path: Path) -> None:
    from datasets import load_dataset

    path = write_rows(tmp_path / "p.jsonl", 1, 2, 3)
    moved = tmp_path / "moved" / "p.jsonl"
    moved.parent.mkdir()
    path.rename(moved)
    write_rows(path, 1, 2, 4)
    changed, same = (train_prompts(dataset(place), codec).fingerprint for place in (path, moved))
    load_dataset("json", data_files=str(moved), split="train", cache_dir=str(tmp_path / "cache")).to_parquet(
        str(tmp_path / "p.parquet"))
    assert train_prompts(dataset(tmp_path / "p.parquet"), codec).fingerprint == same != changed


def test_missing_data_set_is_named(codec: TextCodec, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", 1)
    with pytest.raises(ConfigError, match=r"data\.eval is not set"):
        eval_prompts(DataConfig(source="dataset", train=path), codec, 3)
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        train_prompts(DataConfig(source="dataset", eval=path), codec)


def test_suites(codec: TextCodec, tmp_path: Path) -> None:
    easy, hard = write_rows(tmp_path / "easy.jsonl", 1, 2, 3), write_rows(tmp_path / "hard.jsonl", 4, 5)
    raw: dict[str, Any] = {
        "name": "r", "model": {"path": "m"}, "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 2, "cycles": 1},
        "optimizer": {"lr": 1e-3}, "evaluation": {"problems": 4, "suites": [
            {"name": "easy", "data": str(easy), "problems": 2}, {"name": "hard", "data": {"path": str(hard)}}]}}
    sets = suite_prompts(validate(raw, "test"), codec)
    assert {name: len(found) for name, found in sets.items()} == {"held-out": 4, "easy": 2, "hard": 2}
    raw["evaluation"]["problems"] = 0
    assert list(suite_prompts(validate(raw, "test"), codec)) == ["easy", "hard"]
