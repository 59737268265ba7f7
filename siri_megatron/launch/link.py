"""The connection between the head of a run and one of its further nodes: JSON lines over TCP, both ends proved.

    node                                   head
    {"node": i, "nonce": a}          ─►
                                     ◄─    {"nonce": b, "proof": HMAC(key, "head", i, a, b)}
    {"proof": HMAC(key, "node", ...)} ─►   from here on both send what they like, and `{}` as a heartbeat

The key is the run's, which only its owner can read from the shared run directory: a node obeys nobody else, for a head
tells it what to run. Proofs keep strangers out; lines are not encrypted (a private interface, as with the engines).

Invariants:

- waits_are_bounded: nothing here waits longer than it was told to; a peer that does not read is a lost one.
- silence_is_known: `silent_s` counts from the last byte that the peer sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import select
import socket
import time
from contextlib import suppress
from typing import Any

HANDSHAKE_S = 5.0
SEND_S = 10.0
HEARTBEAT_S = 1.0
LONGEST_LINE = 4 * 2**20

Message = dict[str, Any]


class LinkLost(Exception):
    """The peer is gone, does not read, or is not who it should be."""


class Link:
    """One end; not for several threads. peer_address: of the other end."""

    def __init__(self, connection: socket.socket, peer_address: str) -> None:
        self.peer_address = peer_address  # a connection that was reset has forgotten it
        self._socket, self._buffer, self._closed = connection, b"", ""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = self._beat = time.monotonic()

    @property
    def local_address(self) -> str:
        """Of this end: the interface over which the peer is reached."""
        return str(self._socket.getsockname()[0])

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard

    def send(self, message: Message) -> None:
        """Raises: LinkLost."""
        try:
            self._socket.settimeout(SEND_S)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self._closed = self._closed or f"the connection broke ({error})"
            raise LinkLost(self._closed) from None

    def receive(self) -> list[Message]:
        """All that has arrived, without heartbeats; sends one if it is due. Does not wait.

        Raises:
            LinkLost: the connection is closed, and everything before was returned.
        """
        self.beat()
        while not self._closed and select.select([self._socket], [], [], 0)[0]:
            self._read()
        *lines, self._buffer = self._buffer.split(b"\n")
        if self._closed and not lines:
            raise LinkLost(self._closed)
        return [message for line in lines if (message := json.loads(line))]

    def wait(self, seconds: float) -> None:
        """Sleep, or less if something arrives."""
        if not self._closed:
            select.select([self._socket], [], [], seconds)

    def close(self) -> None:
        self._closed = self._closed or "closed here"
        self._socket.close()

    def expect(self, timeout_s: float) -> Message:
        """The next message. Raises: LinkLost."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if self._closed or left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise LinkLost(self._closed or f"nothing came within {timeout_s:g} s")
            self._read()
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise LinkLost("the peer speaks something else")
        return message

    def beat(self) -> None:
        """Send a heartbeat if one is due. What goes wrong is told by `receive`, once it has read what came before."""
        if not self._closed and time.monotonic() - self._beat > HEARTBEAT_S:
            self._beat = time.monotonic()
            with suppress(LinkLost):
                self.send({})

    def _read(self) -> None:
        try:
            self._socket.settimeout(SEND_S)
            data = self._socket.recv(2**16)
        except OSError as error:
            self._closed = f"the connection broke ({error})"
            return
        self._buffer += data
        self._heard = time.monotonic()
        if not data:
            self._closed = "the connection was closed"
        if len(self._buffer) > LONGEST_LINE:
            self._closed = "the peer speaks something else"


def join(address: tuple[str, int], key: str, node: int) -> Link:
    """The node's side: connect to the head.

    Raises:
        LinkLost: nobody listens, or not the head of this run.
    """
    link = _connect(address)
    try:
        mine = secrets.token_hex(16)
        link.send({"node": node, "nonce": mine})
        answer = link.expect(HANDSHAKE_S)
        theirs = str(answer.get("nonce", ""))
        if not hmac.compare_digest(str(answer.get("proof", "")), _proof(key, "head", node, mine, theirs)):
            raise LinkLost("the head has another key")
        link.send({"proof": _proof(key, "node", node, mine, theirs)})
    except (LinkLost, ValueError) as error:
        link.close()
        raise LinkLost(str(error)) from None
    return link


def accept(listener: socket.socket, key: str) -> tuple[int, Link]:
    """The head's side, once `listener` is readable: (number of the node, its link).

    Raises:
        LinkLost: whoever connected does not know the key.
    """
    connection, address = listener.accept()
    link = Link(connection, str(address[0]))
    try:
        hello = link.expect(HANDSHAKE_S)
        node, theirs, mine = int(hello.get("node", -1)), str(hello.get("nonce", "")), secrets.token_hex(16)
        link.send({"nonce": mine, "proof": _proof(key, "head", node, theirs, mine)})
        proof = str(link.expect(HANDSHAKE_S).get("proof", ""))
        if not hmac.compare_digest(proof, _proof(key, "node", node, theirs, mine)):
            raise LinkLost("a node with another key")
    except (LinkLost, ValueError, TypeError) as error:
        link.close()
        raise LinkLost(str(error)) from None
    return node, link


def _connect(address: tuple[str, int]) -> Link:
    try:
        return Link(socket.create_connection(address, timeout=HANDSHAKE_S), address[0])
    except OSError as error:
        raise LinkLost(f"{address[0]}:{address[1]}: {error}") from None


def _proof(key: str, who: str, node: int, one: str, other: str) -> str:
    return hmac.new(key.encode(), json.dumps([who, node, one, other]).encode(), hashlib.sha256).hexdigest()
