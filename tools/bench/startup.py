"""What grows with the nodes before a run's first step: `python tools/bench/startup.py [NODES ...]` (1 2 4 8 16).

    joined       the real head and so many real agents: until all have come, proved themselves, looked at their node,
                 and been compared
    started      the head's order to start a process on each node, until the last has told its id
    first push   the real sender over gloo to an engine a node, which joins the group and takes the bytes: the group
                 is made, and BYTES are sent
    next push    once more, in the same group

All nodes are processes of this machine: what each of them does for itself (to start Python, to copy bytes) waits for
its few cores, and grows here as it does not on a cluster. What the head does for all of them grows there as well: so
beside the seconds stands the head's own processor time. Engines are played: they have no model.
"""

from __future__ import annotations

import http.server
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from siri_megatron.config import RunConfig, validate
from siri_megatron.launch import agent
from siri_megatron.launch.fleet import publish
from siri_megatron.launch.gather import gather
from siri_megatron.launch.key import make_key
from siri_megatron.launch.nodes import Nodes
from siri_megatron.launch.spec import ProcessSpec
from siri_megatron.paths import RunDir
from siri_megatron.rollout.vllm_surface import FINISH_UPDATE, INIT_TRANSFER, UPDATE_WEIGHTS
from siri_megatron.weights.push import WeightPush
from siri_megatron.weights.transfer_group import connect, join_store

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "tiny-digits"
COUNTS = (1, 2, 4, 8, 16)
TENSORS = 16
BYTES = TENSORS * 2**20
WAIT_S = 300.0
FORK = multiprocessing.get_context("fork")
Took = tuple[float, float]
"""Seconds, and of the head's processor."""


def config_of(place: Path, nodes: int) -> RunConfig:
    """A run with a learner and an engine on each node."""
    both = {"nodes": nodes}
    return validate({"name": "startup", "runs_dir": str(place), "model": {"path": str(MODEL)},
                     "optimizer": {"lr": 1e-4}, "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 1},
                     "learner": {"dp": nodes}, "engines": {"count": nodes}, "push": {"backend": "gloo"},
                     "launch": {"nodes": nodes, "learner": both, "engines": both, "join_timeout_s": WAIT_S}}, "startup")


def timed(work: Callable[[], Any]) -> Took:
    began, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - busy


# --- the launch: a head and its agents


def launch(count: int, place: Path) -> tuple[Took, Took]:
    """joined, started: of `count` nodes beside the head's."""
    config = config_of(place, count + 1)
    paths = RunDir(config.run_dir)
    paths.root.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        head = ("127.0.0.1", free.getsockname()[1])
    agents = [FORK.Process(target=agent.serve, args=(config, node, head)) for node in range(1, count + 1)]
    for process in agents:
        process.start()
    found: list[Nodes] = []
    joined = timed(lambda: found.append(gather(config, head, make_key(paths.key), Quiet())))
    try:
        started = timed(lambda: start_one_each(found[0], count, paths))
    finally:
        found[0].end()
        for process in agents:
            process.join(WAIT_S)
    return joined, started


def start_one_each(nodes: Nodes, count: int, paths: RunDir) -> None:
    specs = [ProcessSpec(f"sleep-{node}", "service", ("sleep", "600"), paths.logs / f"sleep-{node}.log", node=node)
             for node in range(1, count + 1)]
    running = [nodes[spec.node].start(spec, tag="startup", grace_s=1.0) for spec in specs]
    deadline = time.monotonic() + WAIT_S
    while not all(process.poll() is None and process.pid for process in running):
        if time.monotonic() > deadline:
            raise TimeoutError("a node did not start its process")
        time.sleep(0.002)


class Quiet:
    """A display that shows nothing."""

    def status(self, text: str) -> None: ...

    def record(self, record: object) -> None: ...

    def event(self, event: object) -> None: ...

    def close(self) -> None: ...


# --- the push: a sender and its engines


class PlayedEngine(http.server.BaseHTTPRequestHandler):
    """The routes of a push; the weights are taken and forgotten."""

    version, group = "", None

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        if self.path == INIT_TRANSFER:
            told = body["init_info"]
            store = join_store(told["host"], told["port"], told["timeout_s"])
            PlayedEngine.group = connect(store, "gloo", host=told["host"], rank=told["rank_offset"],
                                         world_size=told["world_size"], timeout_s=told["timeout_s"])
        elif self.path == UPDATE_WEIGHTS:
            told = body["update_info"]
            assert PlayedEngine.group is not None, "an update comes after the group"
            PlayedEngine.group.broadcast(torch.empty(told["size"], dtype=torch.uint8), told["timeout_s"])
        elif self.path == FINISH_UPDATE:
            PlayedEngine.version = body["weight_version"]
        self._answer({"success": True})

    def do_GET(self) -> None:
        self._answer({"weight_version": PlayedEngine.version})

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def played_engine() -> Iterator[str]:
    """Its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PlayedEngine)
    process = FORK.Process(target=server.serve_forever, daemon=True)
    process.start()
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        process.kill()
        process.join()


class Held:
    """A learner that holds its tensors whole."""

    is_rank0 = True

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(TENSORS):
            yield f"tensor-{number}", torch.zeros(BYTES // TENSORS // 4)


def pushes(count: int, place: Path) -> tuple[Took, Took]:
    """first, next: of a push to `count` engines. In a process of its own: a fork may not follow gloo's threads."""
    config = config_of(place, count)
    paths = RunDir(config.run_dir)
    paths.root.mkdir(parents=True)
    make_key(paths.key)
    with ExitStack() as stack:
        urls = [stack.enter_context(played_engine()) for _ in range(count)]
        publish(paths, [{"index": at, "url": url, "tp": 1} for at, url in enumerate(urls)], epoch=1, model="policy")
        push = WeightPush(config, paths, Held(), lambda _, decide: decide())
        stack.callback(push.close)
        return timed(lambda: push.push("1")), timed(lambda: push.push("2"))


def line(count: int) -> str:
    with tempfile.TemporaryDirectory(prefix="startup-") as directory, ProcessPoolExecutor(1, FORK) as pool:
        place = Path(directory)
        took = [*pool.submit(launch, count, place / "nodes").result(),
                *pool.submit(pushes, count, place / "push").result()]
    return f"{count:5}" + "".join(f"{seconds:12.2f} {busy * 1e3:6.0f} ms" for seconds, busy in took)


def main(words: list[str]) -> int:
    heads = ("joined", "started", "first push", "next push")
    torch.set_num_threads(1)
    print("nodes" + "".join(f"{head:>10} s {'head':>9}" for head in heads), flush=True)
    for count in map(int, words or COUNTS):
        print(line(count), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
