"""Run a command while processes below it are held up at random, as on a machine whose CPUs are taken away for moments.

    python tools/stalls.py [--seed 1] [--every 0.15] [--longest 2] [--at-once 2] -- make test

A test that counts on being quick fails on such a machine now and then, and never where it was written. Here it fails
within an hour. One process at a time (--at-once: so many) is stopped (SIGSTOP) for 0.1 s up to --longest seconds, then
goes on; the pause between two is --every seconds on average. The exit status is the command's. (A test that stops a
process itself just while that is held up finds it going on.)
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Sequence
from threading import Event, Thread

import psutil

SHORTEST_S = 0.1
LEFT_ALONE = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
"""Who has been stopped by somebody else stays so."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.15, metavar="SECONDS")
    parser.add_argument("--longest", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--at-once", type=int, default=2, metavar="PROCESSES")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    over = Event()
    command = subprocess.Popen(args.command)
    threads = [Thread(target=hold_up, args=(psutil.Process(command.pid), random.Random(args.seed + number), over,
                                            args.every, args.longest)) for number in range(args.at_once)]
    for thread in threads:
        thread.start()
    try:
        return command.wait()
    except KeyboardInterrupt:  # of the terminal: the command has had it too
        return command.wait()
    finally:
        over.set()
        for thread in threads:
            thread.join()


def hold_up(root: psutil.Process, rng: random.Random, over: Event, every_s: float, longest_s: float) -> None:
    """Stop one process below `root` after another, each for a while, until it is over."""
    while not over.wait(rng.expovariate(1 / every_s)):
        try:
            process = rng.choice([*root.children(recursive=True), root])
            if process.status() in LEFT_ALONE:
                continue
            process.suspend()
            try:
                over.wait(rng.uniform(SHORTEST_S, longest_s))
            finally:
                process.resume()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
