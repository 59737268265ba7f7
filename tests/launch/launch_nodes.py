"""A run of stand-in processes over two nodes, both of them on this machine. Not a test.

    python launch_nodes.py head RUN_DIR HEAD_PORT ENGINE_PORT ROLE[@NODE]=MODE,ARGS...
    python launch_nodes.py agent RUN_DIR HEAD_PORT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from launch_run import Printer, plan

from siri_megatron.config import RunConfig, validate
from siri_megatron.errors import SiriError
from siri_megatron.launch import agent
from siri_megatron.launch.gather import gather
from siri_megatron.launch.key import make_key
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.stop import clear_notice
from siri_megatron.launch.supervisor import Supervisor
from siri_megatron.paths import RunDir

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "tiny-digits"


def config_of(root: Path) -> RunConfig:
    return validate({"name": root.name, "runs_dir": str(root.parent), "model": {"path": str(MODEL)},
                     "optimizer": {"lr": 1e-4}, "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 2},
                     "push": {"backend": "gloo"},
                     "launch": {"nodes": 2, "join_timeout_s": 60, "node_timeout_s": 6}}, "test")


def head(root: Path, port: int, engine_port: int, words: list[str]) -> int:
    where = {word.partition("=")[0].partition("@")[0]: int(word.partition("=")[0].partition("@")[2] or 0)
             for word in words}
    plain = [word.partition("=")[0].partition("@")[0] + "=" + word.partition("=")[2] for word in words]
    planned = plan(root, engine_port, plain)
    planned = replace(planned, notice_grace_s=30.0, processes=tuple(
        replace(spec, node=where[spec.role]) for spec in planned.processes))
    paths = RunDir(root)
    with RunLock(paths) as lock:
        clear_notice(paths)
        nodes = gather(config_of(root), ("127.0.0.1", port), make_key(paths.key), Printer())
        try:
            return Supervisor(planned, Printer(), lock, nodes).run().exit_code
        finally:
            nodes.end()


if __name__ == "__main__":
    root_ = Path(sys.argv[2])
    root_.mkdir(parents=True, exist_ok=True)
    try:
        if sys.argv[1] == "agent":
            sys.exit(agent.serve(config_of(root_), 1, ("127.0.0.1", int(sys.argv[3]))))
        sys.exit(head(root_, int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
    except SiriError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
