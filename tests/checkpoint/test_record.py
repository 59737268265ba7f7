"""Commit records and retention, without torch ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.checkpoint import store
from siri_megatron.checkpoint.record import FILE, CommitRecord, read_record, write_record
from siri_megatron.errors import ModelError
from siri_megatron.paths import RunDir


def record(step: int, tag: str | None = None) -> CommitRecord:
    return CommitRecord(step=step, tag=tag, decisions={"controller": {"version": 3}}, consumed_prompts=16 * step,
                        ledger_steps=step, weight_version=str(step), identity="i", runtime="r")


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


@settings(max_examples=40)  # it writes and fsyncs
@given(found=st.dictionaries(st.integers(0, 40), st.booleans(), max_size=12), debris=st.sets(st.integers(0, 40)),
       keep=st.integers(1, 4))
def test_retention(tmp_path_factory: pytest.TempPathFactory, found: dict[int, bool], debris: set[int], keep: int
                   ) -> None:
    """What stays: the newest `keep` commits and every phase end; never debris. A second time changes nothing."""
    paths = RunDir(tmp_path_factory.mktemp("run"))
    for step in debris - set(found):
        (paths.checkpoint(step) / store.STATE).mkdir(parents=True)
    for step, tagged in found.items():
        write_record(record(step, f"iter{step}-expanded" if tagged else None), paths.checkpoint(step))
    stay = sorted({step for step, tagged in found.items() if tagged} | set(sorted(found)[-keep:]))
    for _ in range(2):
        store.prune(paths, keep=keep)
        assert [one.step for one in store.commits(paths)] == stay
        assert sorted(path.name for path in paths.checkpoints.glob("*")) == [f"step-{step:06d}" for step in stay]
        assert (store.latest(paths) or record(-1)).step == max(found, default=-1)
