"""The agent: on every further node of a run, what the supervisor is on the first. It decides nothing.

    join the head ─► look at this node ─► start, stop, kill what the head says ─► report ends ─► end everything

It ends what it started, and itself, when the head says so, is silent for `launch.node_timeout_s`, or is gone. Signals
are the head's business: a scheduler that sends them sends them to the head as well, and the head decides.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siri_megatron.config import RunConfig
from siri_megatron.errors import RunFailed, SiriError
from siri_megatron.files import write_json
from siri_megatron.launch import procfs
from siri_megatron.launch.child import Child
from siri_megatron.launch.interface import chosen_address, interface_of
from siri_megatron.launch.link import Link, LinkLost, Message, join
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.node_facts import hold_ports, look, node_name
from siri_megatron.launch.shared_memory import note_shared, remove_shared
from siri_megatron.launch.spec import ProcessSpec
from siri_megatron.paths import RunDir

POLL_S = 0.2
RETRY_S = 0.3
LOCK_WAIT_S = 30.0
END_LIMIT_S = 8.0
PROBE_S = 10.0
CANNOT_START = 127
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HEAD_LOST = 1


def serve(config: RunConfig, node: int, head: tuple[str, int]) -> int:
    """Run this node until the head ends it; returns the exit status.

    Raises:
        RunFailed: the head did not come in time, or this node's former processes still live.
    """
    paths = RunDir(config.run_dir)
    concluded = _identity(paths)
    link = _await_head(config, paths, node, head, concluded)
    if link is None:
        return 0
    with _signals_ignored():
        try:
            with RunLock(paths, LOCK_WAIT_S, path=paths.node_lock(node)) as lock:
                remove_shared(paths.shared(node))  # of an earlier launch that was killed whole
                return _serve(config, node, link, lock.descriptor)
        except LinkLost as lost:
            raise RunFailed(f"node {node} ({node_name()}) lost the head: {lost}", rule="nodes end with the head",
                            fix="see the head's verdict, result.json") from None
        except SiriError as error:
            with suppress(LinkLost):
                link.send({"refused": {"what": error.what, "rule": error.rule, "fix": error.fix}})
            raise
        finally:
            link.close()


def _serve(config: RunConfig, node: int, link: Link, lock: int) -> int:
    """Tell the head what this node is, then obey."""
    paths = RunDir(config.run_dir)
    nonce = str(link.expect(PROBE_S)["probe"])
    address = chosen_address(config.launch.interface, link.local_address)
    with hold_ports(config, node, address) as held:
        facts = look(config, node, address=address, interface=interface_of(address), ports=held.ports, nonce=nonce)
        write_json(paths.node(node), facts.to_json())
        link.send({"facts": facts.to_json()})
        return Agent(link, node, lock, config.launch.node_timeout_s, paths.shared(node)).run()


class Agent:
    """Children of one node, by the numbers that the head gave them. shared: where their shared memory is noted."""

    def __init__(self, link: Link, node: int, lock: int, timeout_s: float, shared: Path) -> None:
        self.link, self.node, self._lock, self._timeout_s, self._shared = link, node, lock, timeout_s, shared
        self.children: dict[int, Child] = {}
        self._tag = ""
        self._reported: set[int] = set()
        self._pids: dict[int, int] = {}

    def run(self) -> int:
        """Obey until the end."""
        try:
            while True:
                for message in self.link.receive():
                    if "end" in message:
                        self._end_all()
                        self.link.send({"ended": self.node})
                        return 0
                    self._obey(message)
                self._report()
                if self.link.silent_s > self._timeout_s:
                    raise LinkLost(f"silent for {self.link.silent_s:.0f} s (launch.node_timeout_s={self._timeout_s:g})")
                self.link.wait(POLL_S)
        except LinkLost as lost:
            print(f"agent: the head is lost: {lost}; ending {len(self.children)} processes", flush=True)
            return HEAD_LOST
        finally:
            self._end_all()

    def _obey(self, message: Message) -> None:
        if "start" in message:
            self._start(message)
        elif "stop" in message and message["stop"] in self.children:
            self.children[message["stop"]].stop()
        elif "kill" in message and message["kill"] in self.children:
            self.children[message["kill"]].kill()
        elif "note" in message:
            self._note()
        elif "call" in message:
            self._report()  # first what has ended until now
            self.link.send({"here": message["call"]})

    def _start(self, message: Message) -> None:
        if not self._tag:
            self._tag = f"{message['tag']}-{self.node}"  # of its own: nodes may share a machine, each sweeps its own
            self._note()
        try:
            self.children[message["number"]] = Child(ProcessSpec.from_json(message["start"]), tag=self._tag,
                                                     hold=self._lock, grace_s=message["grace_s"])
        except OSError as error:
            print(f"agent: {message['start']['role']} cannot be started: {error}", flush=True)
            self.link.send({"code": CANNOT_START, "number": message["number"]})

    def _note(self) -> None:
        note_shared(self._shared, self._tag, self._living())

    def _living(self) -> list[int]:
        return procfs.tagged(self._tag) if self._tag else []

    def _report(self) -> None:
        """Tell the head of ends, and of the ids of processes."""
        for number, child in self.children.items():
            code = child.poll()
            if code is not None and number not in self._reported:
                if code < 0:  # its guard was killed: what it had started lives on
                    self._sweep()
                self.link.send({"code": code, "number": number})
                self._reported.add(number)
            elif code is None and number not in self._pids and child.pid:
                self._pids[number] = child.pid
                self.link.send({"pid": child.pid, "number": number})

    def _sweep(self) -> None:
        def orphans() -> list[int]:
            guarded = {pid for child in self.children.values() for pid in procfs.descendants(child.guard_pid)}
            return [pid for pid in self._living() if pid not in guarded]

        procfs.end(orphans, 0.0, reap=lambda: None)

    def _end_all(self) -> None:
        for child in self.children.values():
            child.stop()
        grace_s = max((child.grace_s for child in self.children.values()), default=0.0)
        deadline = time.monotonic() + grace_s + END_LIMIT_S
        while any(child.poll() is None for child in self.children.values()) and time.monotonic() < deadline:
            self._keep_link()
            time.sleep(0.05)
        procfs.send([child.guard_pid for child in self.children.values() if child.poll() is None], signal.SIGKILL)
        procfs.end(self._living, 0.0, reap=lambda: None)
        remove_shared(self._shared)

    def _keep_link(self) -> None:
        try:
            self.link.receive()
        except LinkLost:
            return  # the end goes on all the same


def _await_head(config: RunConfig, paths: RunDir, node: int, head: tuple[str, int], concluded: object) -> Link | None:
    """The link to the head; None if the head has concluded (result.json is new) before anybody joined it."""
    deadline = time.monotonic() + config.launch.join_timeout_s
    why = "it has written no key yet"
    while time.monotonic() < deadline:
        if _identity(paths) != concluded and paths.result.exists():
            print(f"agent: the head has ended already: see {paths.result}", flush=True)
            return None
        try:
            return join(head, paths.key.read_text().strip(), node)
        except FileNotFoundError:
            pass
        except LinkLost as lost:
            why = str(lost)
        time.sleep(RETRY_S)
    raise RunFailed(f"node {node} ({node_name()}) did not reach the head at {head[0]}:{head[1]} within "
                    f"launch.join_timeout_s={config.launch.join_timeout_s:g} s: {why}",
                    rule="every node reaches the head and sees the run directory",
                    fix=f"is port {head[1]} open between nodes, and {paths.root} on a shared file system?")


def _identity(paths: RunDir) -> tuple[int, int] | None:
    """Of the present result.json: a new verdict is a new file."""
    try:
        status = paths.result.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def _signals_ignored() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
