"""The main process of tasks without learners: `python -m siri_megatron.launch.driver RUN_DIR --task TASK`.

`rollout-only` has the collector fill the ledger for every step of the schedule under the starting weights;
`eval` has it evaluate them once. Both are thin clients of the collector; `--resume` costs nothing, since closed ledger
steps are reused.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siri_megatron import config as configs
from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.prompt_caps import PromptCaps
from siri_megatron.config import RunConfig
from siri_megatron.errors import EngineError, RunFailed, StaleFleet
from siri_megatron.files import read_json
from siri_megatron.launch.fleet import ask
from siri_megatron.launch.lastwords import guarded_main
from siri_megatron.launch.stop import watch_stop
from siri_megatron.ledger.read import open_step
from siri_megatron.observe.events import EventLog
from siri_megatron.observe.recorder import Recorder
from siri_megatron.observe.stages import StageClock
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient
from siri_megatron.rollout.fleet import accuse, confirm, read_fleet, read_pushed
from siri_megatron.rollout.source import Stopped, raise_if
from siri_megatron.rollout.vllm_surface import NAME_WEIGHTS

POLL_S = 0.5
NAMING_TIMEOUT_S = 30.0
VERSION = "0"  # of the weights that the engines were started with


def drive(paths: RunDir, task: str, tag: str) -> None:
    """Wait for engines and collector, then do the task."""
    config = configs.load(paths.config)
    await_file(paths.fleet, "the engines", config.engines.start_timeout_s + 30)
    await_file(paths.collector, "the collector", 60)
    EventLog(paths.events).write("ready")
    client = CollectorClient(paths)
    if task == "eval":
        on_engines(paths, lambda: client.evaluate(tag, VERSION, timeout_s=config.evaluation_timeout_s))
    else:
        fill_ledger(config, paths, client)


def fill_ledger(config: RunConfig, paths: RunDir, client: CollectorClient) -> None:
    """Collect every step of the schedule; ends early (with status 0) when a stop is asked for."""
    controller = controller_of(config.budget, grid=config.rollout.budget_grid, lag=config.rollout.lag)
    prompt_caps, stop, clock = PromptCaps(config.budget, config.rollout.lag), watch_stop(paths), StageClock()
    recorder = Recorder(paths, 0, max_failed=config.reward.max_failed, tensorboard=False)
    for step in range(controller.steps):
        budget = controller.budget(step)
        try:
            with clock.stage("generation"):
                stats = on_engines(paths, lambda: client.collect(
                    budget, VERSION, timeout_s=config.collect_timeout_s(budget.cap),  # noqa: B023
                    on_progress=lambda _: raise_if(stop), caps=prompt_caps.below(budget.cap)))  # noqa: B023
        except Stopped:
            break
        recorder.step(budget, stats, {}, {}, clock.take())
        if config.budget.prompt_caps.rule != "none":  # else nobody reads the step again
            prompt_caps.observe(open_step(paths.ledger, step))
        if decided := controller.observe(step, stats):
            recorder.event("controller", step, message=decided)
    recorder.close()


def on_engines(paths: RunDir, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Name the weights of every engine that is new, then ask; again if all that were named are lost meanwhile.

    Ends: engines.max_restarts bounds how many can be lost.
    """
    while True:
        name_weights(paths)
        try:
            return ask()
        except StaleFleet:
            time.sleep(POLL_S)


def name_weights(paths: RunDir) -> None:
    """Confirm all engines that are up: they have the weights they were started with, which is what a push is for.

    Who does not answer is accused: it hangs, and would be waited for without end, for /health may answer all the same.

    Raises:
        EngineError: an engine refuses.
    """
    known, key = read_pushed(paths).keys, paths.key.read_text().strip()
    named = []
    for engine in (one for one in read_fleet(paths).engines if not one.suspect):
        if engine.key in known or name_version(engine.url, key, VERSION):
            named.append(engine.key)
        else:
            accuse(paths, engine.key, "did not take the version of its weights")
    confirm(paths, VERSION, named)


def await_file(path: Path, who: str, timeout_s: float) -> dict[str, Any]:
    """The mapping in a file that another process publishes.

    Raises:
        RunFailed: it is not there in time.
    """
    deadline = time.monotonic() + timeout_s
    while (value := read_json(path)) is None:
        if time.monotonic() > deadline:
            raise RunFailed(f"{who} did not publish {path} within {timeout_s:.0f} s",
                            rule="the driver starts its work when engines and collector serve", fix="read their logs")
        time.sleep(0.1)
    return value


def name_version(url: str, key: str, version: str) -> bool:
    """Tell an engine what its weights are called: no push has done so. False if it cannot be reached, or is broken.

    Raises:
        EngineError: the engine refuses.
    """
    status = ask(url, key, "POST", NAME_WEIGHTS, {"new_version": version}, timeout_s=NAMING_TIMEOUT_S)
    if status is not None and status < 500 and status != 200:
        raise EngineError(f"{url}/update_weight_version answered {status}", rule="an engine names its weights",
                          fix="read the engine's log")
    return status == 200


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="siri_megatron.launch.driver", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--task", choices=("rollout-only", "eval"), required=True)
    parser.add_argument("--tag", default="start", help="eval: name of the evaluation")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse()
    directory = RunDir(arguments.run_dir)
    guarded_main("driver", directory, lambda: drive(directory, arguments.task, arguments.tag))
