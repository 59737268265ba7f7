"""Hub data sets, by the real `datasets` in its child process, from a server on this machine with the hub's routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import Hub, serving_hub

from siri_megatron.config import DatasetConfig
from siri_megatron.data.prompts import read_dataset
from siri_megatron.data.rows import Row
from siri_megatron.errors import DataError

ROWS = [Row("0", "1+1?", "2"), Row("1", "2+2?", "4")]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    with serving_hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield Hub


def test_fetched_once_then_from_the_cache(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    aime = DatasetConfig(preset="aime25")
    assert read_dataset(aime, 120.0) == ROWS
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert read_dataset(aime, 120.0, offline=True) == ROWS


def test_unknown_data_set(hub: type[Hub]) -> None:
    with pytest.raises(DataError, match=r"math-ai/none, split test cannot be had: DatasetNotFoundError: ") as caught:
        read_dataset(DatasetConfig(path="math-ai/none", split="test"), 120.0)
    assert "set path to a local file" in caught.value.fix


def test_hub_that_does_not_answer(hub: type[Hub]) -> None:
    """The library would try for minutes; the child is ended."""
    hub.stall.clear()
    with pytest.raises(DataError, match=r"split test did not come within data\.hub_timeout_s=5"):
        read_dataset(DatasetConfig(preset="aime25"), 5.0)


def test_directory_of_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match=r"write \./data/mine"):
        read_dataset(DatasetConfig(path="data/mine", split="test"), 5.0)
    (tmp_path / "data" / "mine" / "test.jsonl").write_text('{"prompt": "1+1?", "answer": "2", "id": "0"}\n')
    assert read_dataset(DatasetConfig(path="./data/mine", split="test"), 5.0) == ROWS[:1]
