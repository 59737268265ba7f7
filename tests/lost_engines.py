"""Real runs whose engines are killed, or stopped, at chosen moments while the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_fleet import wait_until
from process_table import command as command_line
from process_table import descendants
from real_run import REPO, RealRun, command

from siri_megatron.files import read_json
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

MOMENT_S = 900.0
END_S = 900.0


@dataclass(frozen=True)
class Loss:
    """An engine gets `number` at the first such moment after so many steps."""

    moment: str
    """`generation`: a step is open in the ledger; `push`: the weights lie in shared memory."""
    after_steps: int
    engine: int
    number: signal.Signals = signal.SIGKILL
    both_up: bool = True
    """Wait until two engines are up."""
    core: bool = False
    """Not the server, but the engine core behind it, which then still answers /health."""

    @property
    def delay_s(self) -> float:
        """A step takes about a second to generate, a push a tenth of one."""
        return 0.15 if self.moment == "generation" else 0.0


def run_with_losses(runs: Path, name: str, losses: Sequence[Loss], overrides: Sequence[str]) -> RealRun:
    """Train to the end while engines are lost; the run must succeed, and have noticed every loss."""
    paths, log = RunDir(runs / name), runs / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command("tiny.yaml", runs, name, *overrides), cwd=REPO, stdout=output,
                                   stderr=subprocess.STDOUT)
    try:
        for loss in losses:
            wait_until(lambda: process.poll() is not None or is_moment(paths, loss), MOMENT_S,  # noqa: B023
                       f"the moment of {loss}", every_s=0.001)
            assert process.poll() is None, log.read_text()
            time.sleep(loss.delay_s)
            victim = pid_of(paths, loss.engine)
            os.kill(core_of(victim) if loss.core else victim, loss.number)
        process.wait(END_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log.read_text()
    deaths = [event["engine"] for event in jsonl.read(paths.events) if event.get("after") == "dead"]
    assert deaths == [loss.engine for loss in losses], deaths
    return RealRun(paths)


def is_moment(paths: RunDir, loss: Loss) -> bool:
    done = len(jsonl.read(paths.metrics))
    if done < loss.after_steps or pid_of(paths, loss.engine) == 0:
        return False
    if loss.both_up and len((read_json(paths.fleet) or {}).get("engines", ())) < 2:
        return False
    if loss.moment == "push":
        return any(file.exists() for file in paths.shared_weights)
    return any(True for _ in paths.ledger.glob("*.open/index.jsonl"))


def core_of(server: int) -> int:
    """The process that vLLM's server has the model in."""
    return next(pid for pid, _ in descendants(server) if "EngineCore" in command_line(pid))


def pid_of(paths: RunDir, index: int) -> int:
    engines = (read_json(paths.fleet) or {}).get("engines", ())
    return next((int(engine["pid"]) for engine in engines if engine["index"] == index), 0)
