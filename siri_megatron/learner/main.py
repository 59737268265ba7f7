"""Entry of a learner process: `python -m siri_megatron.learner.main RUN_DIR --rank R --world W [--replay RUN]`.

Builds one rank's side of the run (or restores it from the newest commit) and enters the loop. The same program runs
with engines (training) and without (replay of a ledger).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.launch.lastwords import guarded_main
from siri_megatron.paths import RunDir


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="siri_megatron.learner.main")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--replay", type=Path, help="train from the ledger of this run, without engines")
    return parser.parse_args(argv)


def run_rank(args: argparse.Namespace) -> None:
    """Assemble this rank's run and train."""
    from siri_megatron.assemble import assemble  # heavy: torch and megatron; `--help` and argument errors need none
    from siri_megatron.learner.runtime import megatron_runtime
    from siri_megatron.loop import train

    paths = RunDir(args.run_dir)
    with megatron_runtime():
        run = assemble(configs.load(paths.config), paths, rank=args.rank, replay=args.replay)
        train(run)
        run.close()


if __name__ == "__main__":
    arguments = parse()
    guarded_main(f"learner-{arguments.rank}", RunDir(arguments.run_dir), lambda: run_rank(arguments))
