"""Commit records and retention, without torch ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.checkpoint import store
from siri_megatron.checkpoint.record import FILE, CommitRecord, read_record, write_record
from siri_megatron.errors import ModelError
from siri_megatron.launch import progress
from siri_megatron.paths import RunDir


def record(step: int, tag: str | None = None) -> CommitRecord:
    return CommitRecord(step=step, tag=tag, decisions={"controller": {"version": 3}}, consumed_prompts=16 * step,
                        ledger_steps=step, weight_version=str(step), identity="i", runtime="r")


def test_round_trip(tmp_path: Path) -> None:
    write_record(record(7, "iter1-compressed"), tmp_path)
    assert read_record(tmp_path) == record(7, "iter1-compressed")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def committed(directory: Path, step: int = 7) -> Path:
    """A record; its path."""
    write_record(record(step), directory)
    return directory / FILE


def test_without_a_record_it_is_debris(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


@given(cut=st.integers(0, 400))
def test_no_damage_is_debris(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A record cut off anywhere is named, not taken for a save that was never finished."""
    path = committed(tmp_path_factory.mktemp("cut"))
    text = path.read_text().rstrip()
    path.write_text(text[:min(cut, len(text) - 1)])
    with pytest.raises(ModelError, match=re.escape(str(path))):
        read_record(path.parent)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = committed(tmp_path_factory.mktemp("bit"))
    content = bytearray(path.read_bytes().rstrip())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert read_record(path.parent) == record(7)  # white space for white space
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_the_record_of_another_step_is_refused(tmp_path: Path) -> None:
    path = committed(tmp_path / "step-000008")
    with pytest.raises(ModelError, match="it is the record of step 7"):
        read_record(path.parent)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"step": null}', '{"step": 7}'])
def test_a_damaged_commit_is_refused_and_nothing_removed(tmp_path: Path, damage: str) -> None:
    """Not the commit, not the older one, not even debris: who looks after it finds all that there was."""
    paths = RunDir(tmp_path)
    for step in (4, 8):
        committed(paths.checkpoint(step), step)
    (paths.checkpoint(12) / store.STATE).mkdir(parents=True)
    (paths.checkpoint(8) / FILE).write_text(damage)
    for refused in (store.recover, store.latest, progress.check_commits):
        with pytest.raises(ModelError, match=r"step-000008.commit\.json"):
            refused(paths)
    store.prune(paths, keep=1)
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == ["step-000004", "step-000008"]
    assert progress.last_commit(paths) == 8


def test_copies_are_left_alone(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    for name in ("step-000004.bak", "step-000008", "step-000008.bak", "step-old"):
        committed(paths.checkpoints / name, 8 if "8" in name else 4)
    (paths.checkpoints / "step-000012.bak" / store.STATE).mkdir(parents=True)
    there = sorted(paths.checkpoints.iterdir())
    store.prune(paths, keep=1)
    assert store.recover(paths) == []
    assert sorted(paths.checkpoints.iterdir()) == there
    assert [one.step for one in store.commits(paths)] == [8]
    assert progress.last_commit(paths) == 8


@pytest.mark.parametrize("damage", ["", "[]", "{"])
def test_damaged_tags_are_made_anew(tmp_path: Path, damage: str) -> None:
    paths = RunDir(tmp_path)
    for step, tag in ((4, "iter1-compressed"), (8, "iter1-expanded")):
        write_record(record(step, tag), paths.checkpoint(step))
        store.set_tag(paths, tag, step=step)
    (paths.export / "iter1-compressed").mkdir(parents=True)
    (paths.export / "iter1-compressed" / "config.json").write_text("{}")
    store.set_tag(paths, "iter1-compressed", export="export/iter1-compressed")
    before = store.tags(paths)
    paths.tags.write_text(damage)
    assert store.tags(paths) == {}
    store.recover(paths)
    assert store.tags(paths) == before


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
