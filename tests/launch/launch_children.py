"""Small stand-ins for engines, collectors and learners: `python launch_children.py MODE [ARGS]`. Not a test."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from siri_megatron.errors import ConfigError
from siri_megatron.files import write_json
from siri_megatron.launch.lastwords import guarded_main
from siri_megatron.launch.stop import watch_stop
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir
from siri_megatron.rollout.vllm_surface import SOCKETS

VLLM_LOG = """(APIServer pid=7) INFO 08-01 12:00:00 [api_server.py:1] vLLM API server version 0.32.0
(EngineCore pid=8) ERROR 08-01 12:00:01 [core.py:870] Traceback (most recent call last):
(EngineCore pid=8) ERROR 08-01 12:00:01 [core.py:870]   File "core.py", line 861, in run_engine_core
(EngineCore pid=8) ERROR 08-01 12:00:01 [core.py:870] ValueError: No available memory for the cache blocks.
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "api_server.py", line 5, in <module>
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def detach() -> None:
    """Leave a grandchild behind that has its own session, no parent and ignores SIGTERM."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    stubborn()


def stubborn() -> None:
    ignore_signals()
    sleep()


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def sleep() -> None:
    while True:
        time.sleep(60)


def tree() -> None:
    ignore_signals()  # before there are three of them, for which tests wait
    detach()
    if os.fork() == 0:
        stubborn()
    stubborn()


def leaver() -> None:
    """Ends by itself with status 7 and leaves a detached process behind."""
    detach()
    time.sleep(0.2)
    sys.exit(7)


def engine(port: str) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections, as vLLM's does

        def do_GET(self) -> None:
            self.send_response(200 if self.headers.get("Authorization", "").startswith("Bearer ") else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    detach()
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Health).serve_forever()


def engine_holding(port: str) -> None:
    """Holds a named semaphore whose tracker, which would remove it, is dead; and a socket."""
    _lock = hold()
    engine(port)


def engine_loading() -> None:
    """Holds the same, and is never done with loading."""
    _lock = hold()
    sleep()


def hold() -> object:
    lock = multiprocessing.get_context("spawn").Lock()
    os.kill(multiprocessing.resource_tracker._resource_tracker._pid, signal.SIGKILL)  # type: ignore[attr-defined]
    socket.socket(socket.AF_UNIX).bind(f"{os.environ[SOCKETS]}/own")
    print(f"/dev/shm/sem.{lock._semlock.name[1:]} {os.environ[SOCKETS]}", flush=True)  # type: ignore[attr-defined]
    return lock


def engine_once(port: str, flag: str) -> None:
    """Serves at its first start, dies at every other."""
    if Path(flag).exists():
        engine_dies()
    Path(flag).touch()
    engine(port)


def engine_dies() -> None:
    print(VLLM_LOG, flush=True)
    sys.exit(1)


def learner(root: str, rank: str, steps: str, seconds: str) -> None:
    """Trains `steps` steps of `seconds` after the last commit; rank 0 writes them down and heeds a stop."""
    paths = RunDir(Path(root))
    guarded_main(f"learner-{rank}", paths, lambda: _train(paths, int(rank), int(steps), float(seconds)))


def _train(paths: RunDir, rank: int, steps: int, seconds: float) -> None:
    stop = watch_stop(paths, poll_s=0.02)
    commits = sorted(paths.checkpoints.glob("step-*/commit.json"))
    first = json.loads(commits[-1].read_text())["step"] if commits else 0
    for step in range(first, steps):
        time.sleep(seconds)
        if rank == 0:
            jsonl.append(paths.metrics, {"step": step})
        if stop.is_set():
            if rank == 0:
                write_json(paths.checkpoint(step + 1) / "commit.json", {"step": step + 1})
            return


def raises(root: str, role: str, kind: str) -> None:
    guarded_main(role, RunDir(Path(root)), lambda: _raise(kind))


def _raise(kind: str) -> None:
    time.sleep(0.3)
    if kind == "siri":
        raise ConfigError("learner.tp=3, heads=4", rule="heads % tp == 0", fix="learner.tp=2")
    raise ValueError("boom at layer 3\nand a second line")


MODES = {"tree": tree, "sleep": sleep, "stubborn": stubborn, "leaver": leaver, "engine": engine,
         "engine-holding": engine_holding, "engine-loading": engine_loading,
         "engine-once": engine_once, "engine-dies": engine_dies, "learner": learner, "raises": raises}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])
