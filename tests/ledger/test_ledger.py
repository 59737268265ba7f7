"""Writing, reading and recovering ledger steps. The oracle of every test is the list of rows that was appended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import IDENTITY, STAMP, any_rollout, group_of, rollout

from siri_megatron.errors import DataError, RunFailed
from siri_megatron.ledger import index as idx
from siri_megatron.ledger.read import closed_steps, open_step
from siri_megatron.ledger.recover import recover
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(root: Path, groups: list[list[Rollout]], *, close: bool = True) -> Path:
    writer = StepWriter(root, STAMP, IDENTITY)
    for group in groups:
        writer.append(group)
    if close:
        writer.close()
        return writer.path
    writer.abandon()
    return writer.open_path


def read_all(root: Path) -> list[Rollout]:
    rows = open_step(root, STAMP.step)
    return [rows.rollout(i) for i in range(len(rows))]


@quick
@given(st.data())
def test_round_trip_in_canonical_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("ledger")
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    groups = [[data.draw(any_rollout(g, s)) for s in range(n)] for g, n in enumerate(sizes)]
    shuffled = data.draw(st.permutations([data.draw(st.permutations(group)) for group in groups]))
    write(root, shuffled)
    wanted = [row for group in groups for row in group]
    assert read_all(root) == wanted
    rows = open_step(root, STAMP.step)
    assert [rows.forced(i) for i in range(len(rows))] == [(row.forced_start, row.forced_end) for row in wanted]
    assert rows.forced_length.tolist() == [row.forced_end - row.forced_start for row in wanted]


def test_a_full_disk_is_named_and_what_was_whole_is_kept(disk: Callable[..., Path]) -> None:
    root, whole = disk("size=100k"), 0
    writer = StepWriter(root, STAMP, IDENTITY)
    with pytest.raises(RunFailed, match="No space left on device; 0 bytes free") as caught:  # noqa: PT012
        try:
            for whole in range(1000):
                writer.append(group_of(whole))
        finally:
            writer.abandon()  # as the collector does: its own error must not hide the first
    assert caught.value.what.startswith(str(writer.open_path))
    assert "make room" in caught.value.fix
    assert whole
    recover(root)
    assert StepWriter(root, STAMP, IDENTITY).groups == set(range(whole))


def test_a_disk_too_full_to_begin_a_step_is_named(disk: Callable[..., Path]) -> None:
    root = disk("size=8k")
    (root / "taken").write_bytes(bytes(8192))
    with pytest.raises(RunFailed, match=r"step-000007\.open: No space left on device; 0 bytes free"):
        StepWriter(root, STAMP, IDENTITY)
    (root / "taken").unlink()
    recover(root)
    assert StepWriter(root, STAMP, IDENTITY).groups == set()


def test_columns(tmp_path: Path) -> None:
    groups = [group_of(g) for g in (2, 0, 1)]
    write(tmp_path, groups)
    rows, expected = open_step(tmp_path, 7), [row for g in (1, 2, 0) for row in groups[g]]
    assert (rows.budget, rows.identity, len(rows)) == (STAMP, IDENTITY, 12)
    assert rows.response_length.tolist() == [len(row.response_ids) for row in expected]
    assert rows.prompt_length.tolist() == [4] * 12
    assert rows.group.tolist() == [row.group for row in expected]
    assert rows.sample.tolist() == [0, 1, 2, 3] * 3
    assert rows.reward.dtype == np.float32
    assert rows.budget_rewards.tolist() == [row.budget_rewards for row in expected]
    assert rows.truncated.dtype == bool
    assert set(rows.outcome) == {"right"}
    for i, row in enumerate(expected):
        assert [column.tolist() for column in rows.tokens(i)] == [row.prompt_ids, row.response_ids, row.logprobs]
    with pytest.raises(IndexError):
        rows.rollout(12)


def test_readable_by_datasets_and_pyarrow(tmp_path: Path) -> None:
    path = write(tmp_path, [group_of(0), group_of(1)])
    data = datasets.Dataset.from_file(str(path / idx.DATA))
    assert data["response_ids"] == [row.response_ids for row in group_of(0) + group_of(1)]
    assert pa.ipc.open_stream(pa.memory_map(str(path / idx.DATA))).read_all().num_rows == 8


def test_kill_at_every_byte_keeps_whole_groups(tmp_path: Path) -> None:
    groups = [group_of(g, 2) for g in range(3)]
    master = write(tmp_path / "master", groups, close=False)
    ends = [segment.end for segment in idx.parse((master / idx.INDEX).read_bytes(), master).segments]  # type: ignore[union-attr]
    for name in (idx.DATA, idx.INDEX):
        whole = (master / name).read_bytes()
        for k in range(0, len(whole), 7):
            root = tmp_path / "torn"
            shutil.copytree(master, root / master.name)
            (root / master.name / name).write_bytes(whole[:k])
            said = recover(root)
            writer = StepWriter(root, STAMP, IDENTITY)
            assert writer.groups == set(range(len(writer.groups)))
            if name == idx.DATA:
                assert len(writer.groups) == sum(end <= k for end in ends)
            assert len(said) == 1
            assert ("kept" in said[0]) == bool(writer.groups)
            kept = writer.so_far()
            assert [kept.rollout(i) for i in range(len(kept))] == [
                row for group in sorted(writer.groups) for row in groups[group]]
            for group in set(range(3)) - writer.groups:
                writer.append(groups[group])
            writer.close()
            assert read_all(root) == [row for group in groups for row in group]
            shutil.rmtree(root)


def test_killed_between_closing_line_and_rename(tmp_path: Path) -> None:
    path = write(tmp_path, [group_of(0), group_of(1)])
    path.rename(path.with_name(path.name + ".open"))
    assert closed_steps(tmp_path) == []
    writer = StepWriter(tmp_path, STAMP, IDENTITY)
    assert writer.groups == {0, 1}
    writer.close()
    assert read_all(tmp_path) == group_of(0) + group_of(1)


def test_no_changed_byte_of_a_closed_step_goes_unnoticed(tmp_path: Path) -> None:
    path = write(tmp_path, [group_of(0, 2), group_of(1, 2)])
    for name in (idx.DATA, idx.INDEX):
        whole = (path / name).read_bytes()
        for k in range(0, len(whole), 3):
            (path / name).write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1:])
            with pytest.raises(DataError) as caught:
                open_step(tmp_path, 7)
            assert str(path / name) in caught.value.what or str(path / idx.DATA) in caught.value.what
        (path / name).write_bytes(whole)
    assert len(open_step(tmp_path, 7)) == 4  # negative control: mended, it reads again


@pytest.mark.parametrize("closed", [True, False])
def test_another_version_is_refused_and_left_whole(tmp_path: Path, closed: bool) -> None:
    """It is not damage: nothing of it may be cut or removed."""
    path = write(tmp_path, [group_of(0)], close=closed)
    whole = (path / idx.INDEX).read_bytes().replace(b'"format":2', b'"format":1')
    (path / idx.INDEX).write_bytes(whole)
    with pytest.raises(DataError, match="ledger format 1, this version of siri-megatron has 2"):
        open_step(tmp_path, 7) if closed else recover(tmp_path)
    assert (path / idx.INDEX).read_bytes() == whole


def test_corruption_names_both_checksums(tmp_path: Path) -> None:
    path = write(tmp_path, [group_of(0), group_of(5)])
    index = idx.parse((path / idx.INDEX).read_bytes(), path)
    assert index is not None
    bad = index.segments[1]
    data = bytearray((path / idx.DATA).read_bytes())
    data[bad.end - 3] ^= 255
    (path / idx.DATA).write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_step(tmp_path, 7)
    assert "group 5" in caught.value.what
    assert bad.crc32 in caught.value.what
    assert idx.checksum(bytes(data[bad.start:bad.end])) in caught.value.what


@pytest.mark.parametrize("cut", [1, 8, 200])
def test_cut_closed_step_is_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, [group_of(0)])
    whole = (path / idx.DATA).read_bytes()
    (path / idx.DATA).write_bytes(whole[:-cut])
    with pytest.raises(DataError, match=str(len(whole))):
        open_step(tmp_path, 7)


def test_missing_step_names_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, [group_of(0)])
    with pytest.raises(DataError, match=r"step-000009.*does not exist") as caught:
        open_step(tmp_path, 9)
    assert caught.value.fix == "closed steps here: 7"


def test_closed_step_is_never_written_again(tmp_path: Path) -> None:
    write(tmp_path, [group_of(0)])
    with pytest.raises(DataError, match="closed already"):
        StepWriter(tmp_path, STAMP, IDENTITY)
    assert recover(tmp_path) == []
    assert closed_steps(tmp_path) == [7]


@pytest.mark.parametrize(("stamp", "identity"), [(replace(STAMP, cap=25), IDENTITY), (STAMP, "other")])
def test_another_stamp_or_identity_is_not_taken_over(tmp_path: Path, stamp: object, identity: str) -> None:
    write(tmp_path, [group_of(0)], close=False)
    assert StepWriter(tmp_path, stamp, identity).groups == set()  # type: ignore[arg-type]


def test_rows_that_contradict_the_stamp_are_refused(tmp_path: Path) -> None:
    writer = StepWriter(tmp_path, STAMP, IDENTITY)
    writer.append(group_of(0))
    shorter = replace(STAMP, cap=12)
    for rows in ([rollout(1, 0, stamp=replace(STAMP, cap=99))], [rollout(1, 0), rollout(2, 1)], group_of(0), [],
                 [rollout(1, 0), rollout(1, 1, stamp=shorter)]):
        with pytest.raises(ValueError, match=r"group|stamped"):
            writer.append(rows)
    own_cap = [rollout(1, sample, stamp=shorter) for sample in range(2)]  # a prompt may have a cap below the step's
    writer.append(own_cap)
    writer.close()
    assert read_all(tmp_path) == group_of(0) + own_cap
    assert open_step(tmp_path, STAMP.step).cap.tolist() == [24] * 4 + [12] * 2
