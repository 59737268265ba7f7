"""The guard around one child of the supervisor: `python -m siri_megatron.launch.guard [options] -- COMMAND...`.

Its standard input is a liveness pipe whose other end only the supervisor holds. The guard ends the child's whole tree
(SIGTERM, then SIGKILL) when

- the pipe closes: the supervisor is gone, be it by SIGKILL;
- a byte arrives on it (`STOP`, `KILL`), or the guard gets SIGTERM or SIGHUP;
- the child ends, leaving processes behind.

"The whole tree" is exact: the guard is a subreaper, so whatever its descendants do (double fork, setsid, ignored
SIGTERM) they stay its descendants. If the guard itself is killed, the kernel kills the child (parent-death signal);
grandchildren are then found by the launch tag in their environment, by the supervisor or by the other guards.

The child has a directory of its own for sockets (`sockets.py`), which the guard removes at the end, and so it does with
the shared memory that the tree held (`shared_memory.py`). It looks every few seconds what that is: of a tree that has
ended by itself nothing can be read any more.

The guard exits with the child's status (128 + signal number if a signal killed it). Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field

from siri_megatron.launch import procfs
from siri_megatron.launch.orphans import end_orphans
from siri_megatron.launch.shared_memory import made_by, remove_unheld, still_there
from siri_megatron.launch.sockets import private_sockets

STOP = b"S"
KILL = b"K"
LOOK_S = 5.0  # between two looks at the shared memory that the tree holds
LEFTOVER_GRACE_S = 1.0  # what a child leaves behind has no work to finish
CANNOT_START = 127


@dataclass
class Guard:
    command: list[str]
    tag: str
    grace_s: float
    cores: tuple[int, ...] = ()
    child: int = 0
    status: int | None = None
    made: set[str] = field(default_factory=set)  # in shared memory, by the tree

    def run(self) -> int:
        """Start the child, wait for a reason to end, end everything; returns the exit status."""
        procfs.become_subreaper()
        wake = _signals_to_pipe()
        with private_sockets(self.tag) as own:
            self.child = self._start(own)
            reason = self._watch(wake)
            if reason != "exit":
                print(f"guard: {reason}; ending {' '.join(self.command[:4])}", file=sys.stderr, flush=True)
            self._end_tree(reason)
        if reason == "supervisor gone":
            self._sweep()
        return 128 + signal.SIGKILL if self.status is None else self.status

    def _start(self, own: dict[str, str]) -> int:
        """own: variables of the child."""
        guard = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            self._exec(guard, own)
        except OSError as error:
            print(f"{self.command[0]}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(CANNOT_START)

    def _exec(self, guard: int, own: dict[str, str]) -> None:
        procfs.die_with_parent()
        if os.getppid() != guard:  # the guard died between fork and prctl: its death signal will never come
            os._exit(CANNOT_START)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        os.execvpe(self.command[0], self.command, os.environ | own | procfs.TITLE_APART | {procfs.TAG: self.tag})

    def _watch(self, wake: int) -> str:
        """Wait until the child ends or must be ended; says why."""
        while True:
            ready, _, _ = select.select([0, wake], [], [], LOOK_S)
            self.made = still_there(self.made) | made_by(procfs.descendants(os.getpid()))
            if wake in ready:
                numbers = os.read(wake, 64)
                self._reap()
                if self.status is not None:
                    return "exit"
                if stop := set(numbers) & {signal.SIGTERM, signal.SIGHUP}:
                    return f"got {signal.Signals(min(stop)).name}"
            if 0 in ready:
                order = os.read(0, 1)
                return {STOP: "stop asked", KILL: "kill asked"}.get(order, "supervisor gone")

    def _end_tree(self, reason: str) -> None:
        grace_s = {"exit": LEFTOVER_GRACE_S, "kill asked": 0.0}.get(reason, self.grace_s)
        left = procfs.end(lambda: procfs.descendants(os.getpid()), grace_s, reap=self._reap)
        self._reap()
        remove_unheld(self.made, procfs.parents())
        if left:
            print(f"guard: processes {left} survive SIGKILL (stuck in the kernel?)", file=sys.stderr, flush=True)

    def _sweep(self) -> None:
        """The supervisor is gone: kill what a killed guard left behind, once the living guards have had their time."""
        deadline = time.monotonic() + self.grace_s + 2.0
        made: set[str] = set()
        while (left := procfs.tagged(self.tag)) and time.monotonic() < deadline:
            made |= made_by(left)  # at once: they may end by themselves
            time.sleep(0.1)
        end_orphans(self.tag, made, self._reap)

    def _reap(self) -> None:
        """Collect every dead descendant that is ours by now; keeps the status of the child."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code


def _signals_to_pipe() -> int:
    """SIGCHLD, SIGTERM and SIGHUP arrive as bytes on the returned descriptor; SIGINT is the supervisor's business."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return read


def parse(argv: list[str]) -> Guard:
    parser = argparse.ArgumentParser(prog="siri_megatron.launch.guard", description=__doc__)
    parser.add_argument("--tag", required=True, help="launch tag of the run")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--cores", default="", help="comma-separated CPU cores to bind the child to")
    parser.add_argument("--hold", type=int, default=-1, help="descriptor of the run's lock: kept open, not passed on")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    if options.hold >= 0:
        os.set_inheritable(options.hold, False)
    cores = tuple(int(core) for core in options.cores.split(",") if core)
    return Guard(command=options.command, tag=options.tag, grace_s=options.grace, cores=cores)


if __name__ == "__main__":
    sys.exit(parse(sys.argv[1:]).run())
