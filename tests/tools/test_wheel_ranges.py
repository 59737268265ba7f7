"""A part of a wheel, read by pip's own session from a server on this machine: what is fetched, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import random
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tool_modules import tool

from siri_megatron.errors import ConfigError

ranges = tool("wheel_ranges")
SOURCES = {"example/__init__.py": b"VALUE = 7\n", "example/deep/more.py": b"MORE = 8\n" * 200}
COMPILED = {f"example/lib{number}.so": random.Random(number).randbytes(600_000) for number in range(2)}
RECORD = "example-1.5.dist-info/RECORD"


class Files(BaseHTTPRequestHandler):
    """One file; answers byte ranges if the server says so, and counts the bytes that it sends."""

    server: Any

    def do_HEAD(self) -> None:
        self._head(200, len(self.server.content))

    def do_GET(self) -> None:
        content, asked = self.server.content, self.headers.get("Range", "")
        if self.server.ranged and asked.startswith("bytes="):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            content = content[int(begin):int(end) + 1]
        self._head(206 if asked else 200, len(content))
        self.wfile.write(content)
        self.server.sent += len(content)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranged else "none")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wheel(path: Path, *, said: dict[str, bytes] = SOURCES) -> str:
    """A wheel whose RECORD gives the hashes of `said`; returns RECORD's own hash."""
    record = "".join(f"{name},{digest(content)},{len(content)}\n" for name, content in said.items()).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        names = [*SOURCES]
        for name in (names[0], *COMPILED, names[1]):
            archive.writestr(name, {**SOURCES, **COMPILED}[name])
        archive.writestr(RECORD, record)
    return hashlib.sha256(record).hexdigest()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.sent, server.ranged, server.path = 0, True, tmp_path / "example-1.5-py3-none-any.whl"
    server.url = f"http://127.0.0.1:{server.server_port}/{server.path.name}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def is_source(name: str) -> bool:
    return name.endswith(".py") or ".dist-info/" in name


def test_only_the_sources_are_fetched(served: Any, tmp_path: Path) -> None:
    pin = wheel(served.path)
    served.content = served.path.read_bytes()
    asked = ranges.extract(served.url, pin, is_source, tmp_path / "out")
    assert {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.py")} \
        == SOURCES
    assert (tmp_path / "out" / RECORD).exists()
    assert asked < 2000
    assert served.sent < 60_000 < len(served.content) // 10  # pip reads in pieces of some 10 kB


def test_a_server_without_ranges(served: Any, tmp_path: Path) -> None:
    pin, served.ranged = wheel(served.path), False
    served.content = served.path.read_bytes()
    with pytest.raises(ranges.Unavailable, match="gives no ranges"):
        ranges.extract(served.url, pin, is_source, tmp_path / "out")
    assert served.sent == 0


def test_pinned(served: Any, tmp_path: Path) -> None:
    """Another RECORD than the lock's, or a file that is not what RECORD says: nothing is written."""
    wheel(served.path)
    served.content = served.path.read_bytes()
    with pytest.raises(ValueError, match="the lock pins 0000"):
        ranges.extract(served.url, "0" * 64, is_source, tmp_path / "out")
    pin = wheel(served.path, said=SOURCES | {"example/deep/more.py": b"other"})
    served.content = served.path.read_bytes()
    with pytest.raises(ValueError, match=r"example/deep/more\.py has sha256="):
        ranges.extract(served.url, pin, is_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wheel_on_this_machine_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    """PIP_FIND_LINKS names a folder: the line also pins the whole wheel, and pip checks that."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = folder / "example-1.5-py3-none-any.whl"
    pin = wheel(file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("example-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1.5\n")
        archive.writestr("example-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheels = tool("wheels")
    line = wheels.Wheel("example", "1.5", hashlib.sha256(file.read_bytes()).hexdigest(), pin)
    directory = wheels.unpack(line, tmp_path / "place")
    assert (directory / "example" / "__init__.py").read_bytes() == b"VALUE = 7\n"
    assert "the whole wheel is fetched" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"cannot fetch|has a wheel"):
        wheels.unpack(wheels.Wheel("example", "1.5", "1" * 64, pin), tmp_path / "other")


def test_a_gap_is_read_or_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "a.whl")
    with zipfile.ZipFile(tmp_path / "a.whl") as archive:
        apart = ranges.ranges(archive, list(SOURCES))
        monkeypatch.setattr(ranges, "GAP", 2**30)
        together = ranges.ranges(archive, list(SOURCES))
        assert ranges.ranges(archive, []) == []
        whole = ranges.ranges(archive, archive.namelist())
    assert len(apart) == 2
    assert together == [(apart[0][0], apart[1][1])]
    assert whole == [(0, whole[0][1])]
