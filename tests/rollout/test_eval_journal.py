"""The journal of an evaluation: cut or damaged anywhere it gives whole questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.rollout.eval_journal import Journal, discard_later, whole_lines

ANSWERS = [{"tokens": 3, "rewards": {"8": 1.0, "16": None}, "truncated": False, "outcome": "failed",
            "response": "é\r\n\u2028"}]


def written(path: Path, n: int = 4, key: str = "k", version: str = "7") -> bytes:
    journal = Journal(path, key, version)
    for place in range(n):
        journal.append(("s", place), ANSWERS)
    journal.close()
    return path.read_bytes()


def reopened(path: Path, key: str = "k") -> dict:
    journal = Journal(path, key, "7")
    journal.close()
    return journal.done


def test_what_was_finished_is_there(tmp_path: Path) -> None:
    written(tmp_path / "deep" / "t.journal")
    assert reopened(tmp_path / "deep" / "t.journal") == {("s", place): ANSWERS for place in range(4)}


@settings(max_examples=150)
@given(st.data())
def test_prefix(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut anywhere, or with a byte changed anywhere: whole questions before it, and it can be gone on with."""
    path = tmp_path_factory.getbasetemp() / "prefix.journal"
    path.unlink(missing_ok=True)
    whole = written(path)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1:]
    path.write_bytes(broken)
    lines_before = whole[:at].count(b"\n")
    assert len(reopened(path)) == max(0, lines_before - 1)
    journal = Journal(path, "k", "7")
    for place in range(len(journal.done), 4):
        journal.append(("s", place), ANSWERS)
    journal.close()
    assert path.read_bytes() == whole


def test_same_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "t.journal"
    written(path)
    assert reopened(path, key="other") == {}
    assert reopened(path) == {}  # the other one has replaced it


def test_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "t.journal", "k", "7")
    journal.append(("s", 1), ANSWERS)
    with pytest.raises(ValueError, match=r"has \('s', 1\) already"):
        journal.append(("s", 1), ANSWERS)
    journal.close()


def test_journals_of_weights_still_to_be_made_go(tmp_path: Path) -> None:
    """A run that went back before step 7 makes other weights for step 8 (vime#324: what is left over is used twice)."""
    for version in ("6", "7", "8"):
        written(tmp_path / f"v{version}.journal", version=version)
    (tmp_path / "torn.journal").write_bytes(b"1234 {")
    (tmp_path / "start.json").write_text("{}")
    discard_later(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.json", "v6.journal", "v7.journal"]
    assert list(whole_lines(tmp_path / "none.journal")) == []
    discard_later(tmp_path / "none", 7)
