"""Files that are read whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from siri_megatron.files import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "record.json", {"name": "naïve", "steps": [1, 2]})
    assert read_json(tmp_path / "deep" / "record.json") == {"name": "naïve", "steps": [1, 2]}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1, 2]", b"null", b"\xff\xfe{}", b'{"a": "\xe4"}', bytes(64)])
def test_anything_else_is_none(tmp_path: Path, content: bytes) -> None:
    """Also bytes that are no UTF-8: a page of zeros or of another file, left by a machine that died."""
    (tmp_path / "record.json").write_bytes(content)
    assert read_json(tmp_path / "record.json") is None


@pytest.mark.parametrize(("times", "code"), [(1, errno.ESTALE), (2, errno.ESTALE), (1, errno.EIO)])
def test_a_file_that_is_replaced_on_nfs_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         times: int, code: int) -> None:
    """The new one is read, once; what is wrong otherwise is not hidden."""
    write_json(tmp_path / "pulse.json", {"at": 1})
    read, failing = Path.read_text, [OSError(code, "gone")] * times

    def stale(path: Path, *args: Any, **kwargs: Any) -> str:
        if failing:
            raise failing.pop()
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", stale)
    if (times, code) == (1, errno.ESTALE):
        assert read_json(tmp_path / "pulse.json") == {"at": 1}
    else:
        with pytest.raises(OSError, match="gone"):
            read_json(tmp_path / "pulse.json")


def test_missing_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "record.json") is None
