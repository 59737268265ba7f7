"""The further nodes of a run as its head sees them: one link to each agent (`gather` makes them).

A process there looks like one here (`child.Running`): its starts, stops and ends go over the link, its log lies in the
shared run directory. A node whose link is broken or silent is lost, and so are its processes: they count as ended with
`verdict.NODE_LOST`, which makes the run end as one to try again (exit status 75) unless it can do without them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from siri_megatron.launch import verdict
from siri_megatron.launch.child import read_tail
from siri_megatron.launch.link import Link, LinkLost, Message
from siri_megatron.launch.node_facts import NodeFacts
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.spec import ProcessSpec

ROLL_CALL_S = 3.0
END_LIMIT_S = 20.0


class RemoteProcess:
    """A process on a further node; `child.Running`."""

    def __init__(self, node: RemoteNode, number: int, spec: ProcessSpec) -> None:
        self._node, self.number, self.spec = node, number, spec
        self.code: int | None = None
        self.pid = 0
        self._log_start = spec.log.stat().st_size if spec.log.exists() else 0

    @property
    def role(self) -> str:
        return self.spec.role

    def poll(self) -> int | None:
        self._node.listen()
        if self.code is None and self._node.lost:
            self.code = verdict.NODE_LOST
        return self.code

    def stop(self) -> None:
        self._node.tell({"stop": self.number})

    def kill(self) -> None:
        self._node.tell({"kill": self.number})

    def log_tail(self, limit: int = 200_000) -> str:
        written = read_tail(self.spec.log, self._log_start, limit) if self.spec.log.exists() else ""
        return f"{written}\nguard: {self._node.label} is lost: {self._node.lost}\n" if self._node.lost else written


class RemoteNode:
    """One further node: its facts, its link, its processes."""

    def __init__(self, facts: NodeFacts, link: Link, timeout_s: float) -> None:
        self.facts, self.lost = facts, ""
        self._link, self._timeout_s = link, timeout_s
        self._processes: list[RemoteProcess] = []
        self._answered: set[str] = set()
        self._ended = False

    @property
    def label(self) -> str:
        return self.facts.label

    def start(self, spec: ProcessSpec, *, tag: str, grace_s: float) -> RemoteProcess:
        """On a lost node: a process that is lost from the start."""
        process = RemoteProcess(self, len(self._processes), spec)
        self._processes.append(process)
        self.tell({"start": spec.to_json(), "number": process.number, "tag": tag, "grace_s": grace_s})
        return process

    def tell(self, message: Message) -> None:
        if self.lost:
            return
        try:
            self._link.send(message)
        except LinkLost as error:
            self.lost = str(error)

    def listen(self) -> None:
        """Take in what has arrived; notice if nothing has for too long."""
        if self.lost or self._ended:
            return
        try:
            for message in self._link.receive():
                self._heed(message)
        except LinkLost as error:
            self.lost = str(error)
        if not self._ended and self._link.silent_s > self._timeout_s:
            silent = f"silent for {self._link.silent_s:.0f} s (launch.node_timeout_s={self._timeout_s:g})"
            self.lost = self.lost or silent

    def _heed(self, message: Message) -> None:
        if "number" in message:
            process = self._processes[message["number"]]
            process.pid, process.code = message.get("pid", process.pid), message.get("code", process.code)
        elif "here" in message:
            self._answered.add(message["here"])
        elif "ended" in message:
            self._ended = True

    def answered(self, call: str) -> bool:
        """It has answered a roll call, or cannot."""
        self.listen()
        return bool(self.lost) or call in self._answered

    def gone(self) -> bool:
        """Nothing of the run lives there any more, as far as can be known."""
        self.listen()
        return bool(self.lost) or self._ended

    def close(self) -> None:
        self._link.close()


class Nodes:
    """All further nodes, from number 1 on.

    Args:
        mine: facts of the head itself.
        held: its ports.
        key: the run's key, which the agents have proved to know.
    """

    def __init__(self, mine: NodeFacts, remote: Sequence[RemoteNode], held: PortHolder, key: str) -> None:
        self.key, self._mine, self._remote, self._held = key, mine, list(remote), held
        self._told: set[int] = set()

    @property
    def facts(self) -> list[NodeFacts]:
        """Of every node, the head first."""
        return [self._mine, *(node.facts for node in self._remote)]

    def __getitem__(self, node: int) -> RemoteNode:
        return self._remote[node - 1]

    def news(self) -> list[RemoteNode]:
        """Nodes that are lost since the last look."""
        for node in self._remote:
            node.listen()
        news = [node for node in self._remote if node.lost and node.facts.node not in self._told]
        self._told |= {node.facts.node for node in news}
        return news

    def roll_call(self) -> None:
        """Have every node tell what has ended there; who does not answer is lost.

        Called when something failed: a peer's network error may arrive before the news of the node that caused it.
        """
        call = secrets.token_hex(4)
        for node in self._remote:
            node.tell({"call": call})
        deadline = time.monotonic() + ROLL_CALL_S
        while not all(node.answered(call) for node in self._remote) and time.monotonic() < deadline:
            time.sleep(0.02)
        for node in self._remote:
            if not node.answered(call):
                node.lost = f"no answer within {ROLL_CALL_S:g} s"

    def note_shared(self) -> None:
        """Have every agent write down what shared memory its processes hold."""
        for node in self._remote:
            node.tell({"note": True})

    def end(self) -> None:
        """Have every agent end what it has, and itself. Does nothing the second time."""
        for node in self._remote:
            node.tell({"end": True})
        deadline = time.monotonic() + END_LIMIT_S
        while not all(node.gone() for node in self._remote) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.close()

    def close(self) -> None:
        for node in self._remote:
            node.close()
        self._held.close()
