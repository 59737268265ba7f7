"""Commit records and retention, without torch ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.checkpoint.record import FILE, CommitRecord, read_record, write_record
from siri_megatron.errors import ModelError


def record(step: int, tag: str | None = None) -> CommitRecord:
    return CommitRecord(step=step, tag=tag, controller={"version": 3}, consumed_prompts=16 * step, ledger_steps=step,
                        weight_version=str(step), identity="i", runtime="r")


def test_round_trip(tmp_path: Path) -> None:
    write_record(record(7, "iter1-compressed"), tmp_path)
    assert read_record(tmp_path) == record(7, "iter1-compressed")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@given(cut=st.integers(0, 200))
def test_a_record_cut_short_is_debris(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("cut")
    write_record(record(7), directory)
    text = (directory / FILE).read_text().rstrip()
    (directory / FILE).write_text(text[:min(cut, len(text) - 1)])
    assert read_record(directory) is None


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(record(1).to_json() | {"novelty": 1}))
    with pytest.raises(ModelError, match="novelty"):
        read_record(tmp_path)
