"""Wheels by pinned hash: whole or absent, fetched once. pip runs for real, on a wheel that lies in a folder."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tool_modules import tool

from siri_megatron.errors import ConfigError

METADATA = "Metadata-Version: 2.1\nName: example-pkg\nVersion: 1.5\nRequires-Python: >=3.12\nRequires-Dist: not-there\n"


@pytest.fixture
def wheels() -> Any:
    return tool("wheels")


@pytest.fixture
def example(wheels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A wheel with Python sources and compiled code, in the only place where pip may look."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = folder / "example_pkg-1.5-cp312-cp312-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("example_pkg/__init__.py", "VALUE = 7\n")
        archive.writestr("example_pkg/fast.cpython-312-x86_64-linux-gnu.so", b"\x7fELF")
        archive.writestr("example_pkg-1.5.dist-info/METADATA", METADATA)
        archive.writestr("example_pkg-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("example_pkg-1.5.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheels.Wheel("example-pkg", "1.5", hashlib.sha256(file.read_bytes()).hexdigest())


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_the_sources_are_unpacked(wheels: Any, example: Any, tmp_path: Path) -> None:
    directory = wheels.unpack(example, tmp_path / "place")
    assert directory == tmp_path / "place" / "example-pkg-1.5"
    assert files(directory) == ["example_pkg-1.5.dist-info/METADATA", "example_pkg-1.5.dist-info/RECORD",
                                "example_pkg-1.5.dist-info/WHEEL", "example_pkg/__init__.py"]


def test_idempotent(wheels: Any, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = wheels.unpack(example, tmp_path / "place")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert wheels.unpack(example, tmp_path / "place") == directory


def test_pinned(wheels: Any, example: Any, tmp_path: Path) -> None:
    """Another wheel than the lock's is refused, and leaves nothing (whole_or_absent)."""
    with pytest.raises(ConfigError, match=r"example-pkg==1\.5") as caught:
        wheels.unpack(replace(example, sha256="0" * 64), tmp_path / "place")
    assert "0" * 64 in caught.value.rule
    assert files(tmp_path / "place") == []
    assert list((tmp_path / "place").iterdir()) == []


def test_no_network_is_said(wheels: Any, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"cannot fetch example-pkg==1\.5") as caught:
        wheels.unpack(example, tmp_path / "place")
    assert "PIP_FIND_LINKS" in caught.value.fix
    assert list((tmp_path / "place").iterdir()) == []


def test_the_lock(wheels: Any) -> None:
    names = [wheel.name for wheel in wheels.read_lock()]
    assert {"megatron-core", "transformer-engine"} <= set(names)


@pytest.mark.parametrize("line", ["example-pkg==1.5", "example-pkg --hash=sha256:" + "0" * 64, "a==1 --hash=sha256:00"])
def test_a_broken_line_of_the_lock(wheels: Any, tmp_path: Path, line: str) -> None:
    (tmp_path / "lock").write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(ConfigError):
        wheels.read_lock(tmp_path / "lock")
