"""Two real vLLM servers on a tiny random model, behind the run key: what the `engines` fixture hands out."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx

from siri_megatron.config import RunConfig, validate
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, write_tokenizer
from siri_megatron.launch import procfs
from siri_megatron.launch.child import Child
from siri_megatron.launch.fleet_watch import FleetWatch
from siri_megatron.launch.key import make_key
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.spec import Machine, ProcessSpec, plan_run
from siri_megatron.observe.events import EventLog
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_api import ROUTE, Sample, parse_answer, request_body
from siri_megatron.rollout.engine_args import IN_PROCESS, engine_launch
from siri_megatron.rollout.vllm_surface import METRICS, SERVER

START_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 120.0
ROUND_TRIPS = 10
"""Of a server's event loop: enough for an earlier request to reach the engine."""


@dataclass(frozen=True)
class EngineFleet:
    """A run directory with key and fleet.json, and the engines that they tell of."""

    config: RunConfig
    run_dir: RunDir
    model_dir: Path
    key: str
    urls: tuple[str, ...]
    processes: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def with_push(self, backend: str, timeout_s: float = 60.0, max_tries: int = 1) -> RunConfig:
        """The fleet's config with another weight transport: the engines serve both."""
        push = self.config.push.model_copy(update={"backend": backend, "timeout_s": timeout_s, "max_tries": max_tries})
        return self.config.model_copy(update={"push": push})

    def post(self, engine: int, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return httpx.post(self.urls[engine] + path, json=body, headers=self.headers, timeout=ANSWER_TIMEOUT_S,
                          trust_env=False)

    def get(self, engine: int, path: str) -> httpx.Response:
        return httpx.get(self.urls[engine] + path, headers=self.headers, timeout=ANSWER_TIMEOUT_S, trust_env=False)

    def send(self, engine: int, path: str, body: dict[str, Any]) -> HTTPConnection:
        """A request that is on its way; `has_taken_in` waits until it is there."""
        url = httpx.URL(self.urls[engine])
        connection = HTTPConnection(url.host, url.port, timeout=ANSWER_TIMEOUT_S)
        connection.request("POST", path, json.dumps(body), self.headers | {"Content-Type": "application/json"})
        return connection

    def has_taken_in(self, engine: int) -> None:
        """What was sent to an engine, or closed, before. Its server's event loop takes what comes in its order."""
        for _ in range(ROUND_TRIPS):
            assert self.get(engine, "/version").status_code == 200

    def metric(self, engine: int, name: str) -> float:
        lines = self.get(engine, METRICS).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))

    def generated(self, engine: int) -> float:
        """Tokens since the engine's start."""
        return self.metric(engine, "generation_tokens_total")

    def sample(self, engine: int, prompt: Sequence[int], *, n: int = 1, max_tokens: int = 24, temperature: float = 1.0,
               seed: int | None = 7, stop_ids: Sequence[int] = ()) -> list[Sample]:
        body = request_body(prompt, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed, stop_ids=stop_ids)
        answer = self.post(engine, ROUTE, body)
        assert answer.status_code == 200, answer.text
        return parse_answer(answer.json(), n=n, max_tokens=max_tokens, stop_ids=stop_ids)


def fleet_config(model_dir: Path, runs_dir: Path, **sections: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "engines", "runs_dir": str(runs_dir), "reproducible": True, "model": {"path": str(model_dir)},
        "budget": {"l_min": 16, "l_max": 128, "cycle_steps": 2, "cycles": 1}, "optimizer": {"lr": 1e-3},
        "engines": {"kv_cache_gib": 0.125, "max_num_seqs": 64},
    }
    return validate(raw | sections, "test")


def with_engines(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"engines": config.engines.model_copy(update=keys)})


def write_tiny_model(path: Path, *, tied: bool = True, seed: int = 0) -> Path:
    """A Qwen2 with 2 layers and the digit tokenizer; random enough for every token to be sampled."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         tie_word_embeddings=tied, initializer_range=0.1, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
                         pad_token_id=PAD_ID)
    Qwen2ForCausalLM(config).save_pretrained(path)
    write_tokenizer(path)
    return path


@contextmanager
def running_fleet(config: RunConfig, *, engines: int = 2, tps: Sequence[int] = (),
                  in_process: Sequence[int] = ()) -> Iterator[EngineFleet]:
    """Start engines as the supervisor does; whatever happens, nothing of them is left.

    tps: tensor-parallel size of each engine (a fleet of a run has one size for all); empty: the config's.
    in_process: those of the engines that have server and core in one process.
    """
    tps = tps or [config.engines.tp] * engines
    engines = len(tps)
    run_dir = RunDir(config.run_dir)
    run_dir.root.mkdir(parents=True)
    key = secrets.token_hex(16)
    run_dir.key.write_text(key)
    run_dir.key.chmod(0o600)
    logs = tuple(run_dir.root / f"engine-{index}.log" for index in range(engines))
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        for index, log in enumerate(logs):
            own = with_engines(config, tp=tps[index], in_process=index in in_process or config.engines.in_process)
            started.append(_start(own, index, run_dir.key, log))
        urls, processes = zip(*started, strict=True)
        fleet = EngineFleet(config, run_dir, config.model.path, key, urls, processes, logs)
        for index in range(engines):
            wait_until(lambda index=index: _healthy(fleet, index), START_TIMEOUT_S, f"engine {index} to be healthy")
        entries = [{"index": i, "url": url, "tp": tps[i], "pid": p.pid} for i, (url, p) in enumerate(started)]
        run_dir.fleet.write_text(json.dumps({"epoch": 1, "engines": entries, "model": "policy"}))
        yield fleet
    finally:
        for _, process in started:
            _end(process)


@contextmanager
def watched_fleet(config: RunConfig, *, in_process: Sequence[int] = ()) -> Iterator[EngineFleet]:
    """Engines under the supervisor's own watch: what is lost is restarted, fleet.json (with the pids) follows.

    in_process: those of the engines that have server and core in one process.
    """
    run_dir = RunDir(config.run_dir)
    run_dir.root.mkdir(parents=True)
    tag, key = secrets.token_hex(8), make_key(run_dir.key)
    with PortHolder(config.engines.host, 0, config.engines.count) as held, open(os.devnull) as hold:
        plan = plan_run(config, "train", Machine(cores=tuple(sorted(os.sched_getaffinity(0)))), ports=held.ports)
        plan = replace(plan, processes=tuple(_in_process(spec) if spec.role in {f"engine-{i}" for i in in_process}
                                             else spec for spec in plan.processes))

        def start(spec: ProcessSpec) -> Child:
            return Child(spec, tag=tag, hold=hold.fileno(), grace_s=0.5)

        watch = FleetWatch(plan, start, list, EventLog(run_dir.events), key=key, epoch=1)
        over = threading.Event()
        thread = threading.Thread(target=_keep_polling, args=(watch, over))
        thread.start()
        try:
            wait_until(lambda: run_dir.fleet.exists() or not thread.is_alive(), START_TIMEOUT_S, "all engines to be up")
            assert thread.is_alive(), "an engine failed at start"
            urls, logs = zip(*((spec.url, spec.log) for spec in plan.of("engine")), strict=True)
            yield EngineFleet(config, run_dir, config.model.path, key, urls, (), logs)
        finally:
            over.set()
            thread.join()
            watch.stop()
            wait_until(lambda: not procfs.tagged(tag), 30.0, "all engines to be gone")


def _in_process(spec: ProcessSpec) -> ProcessSpec:
    return replace(spec, argv=tuple(IN_PROCESS if word == SERVER else word for word in spec.argv))


def _keep_polling(watch: FleetWatch, over: threading.Event) -> None:
    while not over.wait(0.2) and not (watch.failures() and not watch.ready):
        watch.poll(Silent(), restart=True)


class Silent:
    """A display that shows nothing."""

    def status(self, text: str) -> None: ...

    def record(self, record: object) -> None: ...

    def event(self, event: object) -> None: ...

    def close(self) -> None: ...


def alone(name: str, decide: Callable[[], Any], **_: float) -> Any:
    """`ControlPlane.share` of a single rank."""
    return decide()


def wait_until(done: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Poll until `done()`; raises TimeoutError naming what was waited for."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(every_s)


def _start(config: RunConfig, index: int, key_file: Path, log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """An engine behind the supervisor's guard, which ends the whole tree when this process closes the pipe or dies.

    (vLLM's engine core is a grandchild, and outlives a server that is killed.)
    """
    port = free_port()
    launch = engine_launch(config, index, port, key_file=key_file.absolute(), cores=sorted(os.sched_getaffinity(0)))
    guard = (sys.executable, "-m", "siri_megatron.launch.guard", "--tag", secrets.token_hex(8), "--grace", "1", "--")
    with log.open("wb") as file:
        process = subprocess.Popen((*guard, *launch.argv), env=launch.environment(os.environ), stdin=subprocess.PIPE,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    return f"http://127.0.0.1:{port}", process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(fleet: EngineFleet, index: int) -> bool:
    process = fleet.processes[index]
    if process.poll() is not None:
        raise RuntimeError(f"engine {index} ended with {process.returncode}:\n{fleet.logs[index].read_text()[-3000:]}")
    try:
        return fleet.get(index, "/health").status_code == 200
    except httpx.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=60)
