"""A supervisor over stand-in processes. Not a test.

    python launch_run.py RUN_DIR PORT [SETTING=VALUE...] ROLE=MODE,ARGS...

SETTING: one of `SETTINGS`. Those in seconds are limits, so far off that a busy machine reaches none: a test whose run
shall reach one names it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siri_megatron.errors import SiriError
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.spec import ProcessPlan, ProcessSpec
from siri_megatron.launch.supervisor import Supervisor
from siri_megatron.paths import RunDir
from siri_megatron.rollout.health import Rules

CHILDREN = Path(__file__).with_name("launch_children.py")
KINDS = {"engine": "engine", "collector": "service", "learner": "main", "driver": "main"}
SETTINGS: dict[str, Any] = {"min": 1, "task": "train", "start_timeout_s": 60.0, "dead_s": 20.0, "silence_s": 60.0,
                            "stop_grace_s": 30.0}


class Printer:
    """A display that prints status lines."""

    def status(self, text: str) -> None:
        print(text, flush=True)

    def record(self, record: object) -> None:
        print(f"record {record}", flush=True)

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "disk":
            print(f"disk: {event['message']}", flush=True)

    def close(self) -> None: ...


def plan(root: Path, port: int, words: list[str]) -> ProcessPlan:
    specs, settings = [], dict(SETTINGS)
    for word in words:
        role, _, mode = word.partition("=")
        if role in SETTINGS:
            settings[role] = type(SETTINGS[role])(mode)
            continue
        own = mode.split(",")[1] if mode.startswith(("engine,", "engine-once,", "engine-holding,", "given,")) else port
        kind = KINDS[role.partition("-")[0]]
        argv = () if mode.startswith("given,") else (sys.executable, str(CHILDREN), *mode.split(","))
        specs.append(ProcessSpec(role=role, kind=kind, log=root / "logs" / f"{role}.log",  # type: ignore[arg-type]
                                 argv=argv, url=f"http://127.0.0.1:{own}" if kind == "engine" else ""))
    rules = Rules(suspect_s=settings["dead_s"] / 2, dead_s=settings["dead_s"], hang_s=60.0,
                  start_timeout_s=settings["start_timeout_s"], max_restarts=2, restart_backoff_s=0.2)
    return ProcessPlan(task=settings["task"], run_dir=RunDir(root), processes=tuple(specs), steps=1000, health=rules,
                       min_engines=settings["min"], silence_s=settings["silence_s"],
                       stop_grace_s=settings["stop_grace_s"], end_grace_s=0.5)


if __name__ == "__main__":
    root_ = Path(sys.argv[1])
    root_.mkdir(parents=True, exist_ok=True)
    try:
        with RunLock(RunDir(root_)) as lock:
            ended = Supervisor(plan(root_, int(sys.argv[2]), sys.argv[3:]), Printer(), lock).run()
            print(ended.reason, flush=True)
            sys.exit(ended.exit_code)
    except SiriError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
