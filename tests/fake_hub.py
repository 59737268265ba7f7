"""A server on this machine with the routes of the Hugging Face hub: one data set and one model, at one commit each."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

NAME, COMMIT = "math-ai/aime25", "a" * 40
FILES = {"README.md": b"---\nlicense: mit\n---\n",
         "test.jsonl": b'{"problem": "1+1?", "answer": "2", "id": "0"}\n'
                       b'{"problem": "2+2?", "answer": "4", "id": "1"}\n'}
MODEL = "someone/tiny"


def about(name: str, files: Mapping[str, bytes]) -> dict[str, object]:
    return {"id": name, "_id": "1", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [],
            "gated": False, "siblings": [{"rfilename": file} for file in files]}


def entries(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    return [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()]


class Hub(BaseHTTPRequestHandler):
    """`stall`: requests wait until it is set. `model`: the files of the model, by name."""

    protocol_version = "HTTP/1.1"
    stall = threading.Event()
    model: Mapping[str, bytes] = MappingProxyType({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.stall.wait(30)
        path = self.path.partition("?")[0]
        for name, kind, files in ((NAME, "datasets", FILES), (MODEL, "models", self.model)):
            prefix = f"/{kind}/{name}" if kind == "datasets" else f"/{name}"
            if path.startswith(f"{prefix}/resolve/") and path.rpartition("/resolve/")[2].partition("/")[2] in files:
                return self.answer(files[path.rpartition("/resolve/")[2].partition("/")[2]])
            if files and path.startswith(f"/api/{kind}/{name}/revision/"):
                return self.answer(json.dumps(about(name, files)).encode())
            if files and path == f"/api/{kind}/{name}/tree/{COMMIT}":
                return self.answer(json.dumps(entries(files)).encode())
        error = "EntryNotFound" if NAME in path else "RepoNotFound"
        return self.answer(b"{}", 404, {"X-Error-Code": error, "X-Error-Message": f"{path} is not there"})

    def answer(self, data: bytes, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers,
                              "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def serving_hub() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.stall.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Hub.stall.set()
    server.shutdown()
    server.server_close()
