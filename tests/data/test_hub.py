"""Hub data sets, by the real `datasets` in its child process, from a server on this machine with the hub's routes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from siri_megatron.config import DatasetConfig
from siri_megatron.data.prompts import read_dataset
from siri_megatron.data.rows import Row
from siri_megatron.errors import DataError

NAME, COMMIT = "math-ai/aime25", "a" * 40
FILES = {"README.md": b"---\nlicense: mit\n---\n",
         "test.jsonl": b'{"problem": "1+1?", "answer": "2", "id": "0"}\n'
                       b'{"problem": "2+2?", "answer": "4", "id": "1"}\n'}
ROWS = [Row("0", "1+1?", "2"), Row("1", "2+2?", "4")]


class Hub(BaseHTTPRequestHandler):
    """One data set at one commit. `stall`: requests wait until it is set."""

    protocol_version = "HTTP/1.1"
    stall = threading.Event()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.stall.wait(30)
        path = self.path.partition("?")[0]
        file = path.rpartition("/resolve/")[2].partition("/")[2]
        entries = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                   for name, data in FILES.items()]
        if path.startswith(f"/datasets/{NAME}/resolve/") and file in FILES:
            self.answer(FILES[file])
        elif path.startswith(f"/api/datasets/{NAME}/revision/"):
            about = {"id": NAME, "_id": "1", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [],
                     "gated": False, "siblings": [{"rfilename": name} for name in FILES]}
            self.answer(json.dumps(about).encode())
        elif path == f"/api/datasets/{NAME}/tree/{COMMIT}":
            self.answer(json.dumps(entries).encode())
        else:
            error = "EntryNotFound" if NAME in path else "RepoNotFound"
            self.answer(b"{}", 404, {"X-Error-Code": error, "X-Error-Message": f"{path} is not there"})

    def answer(self, data: bytes, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers,
                              "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.stall.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield Hub
    Hub.stall.set()
    server.shutdown()
    server.server_close()


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
