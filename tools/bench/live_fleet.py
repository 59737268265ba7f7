"""Engines and the collector of a config, as the supervisor starts them, for benchmarks that ask them themselves."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siri_megatron.config import RunConfig, save
from siri_megatron.launch import procfs
from siri_megatron.launch.child import Child
from siri_megatron.launch.driver import name_weights
from siri_megatron.launch.fleet import healthy, publish
from siri_megatron.launch.key import make_key
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.spec import Machine, ProcessPlan, plan_run
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient

END_S = 2.0


@dataclass(frozen=True)
class LiveFleet:
    """What was started. `children` are engines first, the collector last."""

    config: RunConfig
    paths: RunDir
    client: CollectorClient
    children: tuple[Child, ...]

    def cpu_seconds(self) -> float:
        """Of all processes so far."""
        pids = (pid for child in self.children for pid in procfs.descendants(child.guard_pid))
        return sum(map(cpu_seconds, pids))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc_pid_stat(5)); 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def live_fleet(config: RunConfig, cores: tuple[int, ...]) -> Iterator[LiveFleet]:
    """Start in a fresh run directory and wait until everything serves; whatever happens, nothing is left.

    Raises:
        RuntimeError: a process ended; with the end of its log.
        TimeoutError: an engine is not healthy after engines.start_timeout_s.
    """
    paths = RunDir(config.run_dir)
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.root.mkdir(parents=True)
    save(config, paths.config)
    key, tag = make_key(paths.key), secrets.token_hex(8)
    with PortHolder(config.engines.host, 0, config.engines.count) as held, open(os.devnull) as hold:
        plan = plan_run(config, "rollout-only", Machine(cores=cores), ports=held.ports)
        children = [Child(spec, tag=tag, hold=hold.fileno(), grace_s=0.5)
                    for spec in (*plan.of("engine"), *plan.of("service"))]
        client = CollectorClient(paths)
        try:
            _await_health(plan, children, key, config.engines.start_timeout_s)
            engines = [{"index": at, "url": spec.url, "tp": spec.tp} for at, spec in enumerate(plan.of("engine"))]
            publish(paths, engines, epoch=1, model=plan.model)
            name_weights(paths)
            yield LiveFleet(config, paths, client, tuple(children))
        finally:
            client.close()
            for child in children:
                child.kill()
            procfs.end(lambda: procfs.tagged(tag), END_S, reap=lambda: None)


def _await_health(plan: ProcessPlan, children: list[Child], key: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(healthy(spec.url, key) for spec in plan.of("engine")):
        ended = [child for child in children if child.poll() is not None]
        if ended:
            raise RuntimeError(f"{ended[0].role} ended:\n{ended[0].log_tail(3000)}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the engines are not healthy after {timeout_s:g} s; read {plan.run_dir.logs}")
        time.sleep(0.2)
