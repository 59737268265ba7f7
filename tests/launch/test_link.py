"""The connection of head and node: both ends proved, every wait bounded, silence known."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_fleet import Silent

from siri_megatron.config import load
from siri_megatron.errors import ConfigError, RunFailed
from siri_megatron.launch import agent
from siri_megatron.launch import link as links
from siri_megatron.launch.gather import _await_facts
from siri_megatron.launch.link import Link, LinkLost, accept, join
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.paths import RunDir


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def meet(listener: socket.socket, head_key: str, node_key: str) -> tuple[Any, Any]:
    """What each side got: its link, or the error."""
    got: list[Any] = [None, None]

    def node() -> None:
        try:
            got[1] = join(listener.getsockname(), node_key, 3)
        except LinkLost as lost:
            got[1] = lost

    thread = threading.Thread(target=node)
    thread.start()
    try:
        got[0] = accept(listener, head_key)
    except LinkLost as lost:
        got[0] = lost
    thread.join(20)
    return got[0], got[1]


def pair(listener: socket.socket) -> tuple[Link, Link]:
    (node, head_end), node_end = meet(listener, "secret", "secret")
    assert node == 3
    return head_end, node_end


def send_much(link: Link) -> None:
    for _ in range(100):
        link.send({"text": "x" * 10**6})


def test_messages_arrive_whole_and_in_order(listener: socket.socket) -> None:
    head, node = pair(listener)
    sent = [{"number": number, "text": "x" * 50_000} for number in range(5)]
    for message in sent:
        head.send(message)
    got: list[Any] = []
    deadline = time.monotonic() + 10
    while len(got) < len(sent) and time.monotonic() < deadline:
        node.wait(0.5)
        got += node.receive()
    assert got == sent


@pytest.mark.parametrize("keys", [("secret", "other"), ("other", "secret")])
def test_who_does_not_know_the_key_is_refused_by_either_side(listener: socket.socket, keys: tuple[str, str]) -> None:
    assert [type(side) for side in meet(listener, *keys)] == [LinkLost, LinkLost]


def test_a_proof_cannot_be_sent_back(listener: socket.socket) -> None:
    """A head without the key mirrors what the node says: proofs name their side, so none is one of the other."""
    caught: list[str] = []

    def mirror() -> None:
        connection, _ = listener.accept()
        with connection:
            hello = connection.recv(4096).decode()
            nonce = hello.split('"nonce": "')[1].split('"')[0]
            proof = links._proof("secret", "node", 3, nonce, nonce)
            connection.sendall(f'{{"nonce": "{nonce}", "proof": "{proof}"}}\n'.encode())
            connection.settimeout(10)
            caught.append(connection.recv(4096).decode())

    thread = threading.Thread(target=mirror)
    thread.start()
    with pytest.raises(LinkLost, match="another key"):
        join(listener.getsockname(), "secret", 3)
    thread.join(20)
    assert caught == [""]


def test_everything_sent_before_the_end_is_received(listener: socket.socket) -> None:
    head, node = pair(listener)
    node.send({"last": "words"})
    node.close()
    time.sleep(0.1)
    assert head.receive() == [{"last": "words"}]
    with pytest.raises(LinkLost, match="closed"):
        head.receive()
    with pytest.raises(LinkLost):
        send_much(head)


def test_silence_is_known_and_heartbeats_end_it(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "HEARTBEAT_S", 0.05)
    head, node = pair(listener)
    time.sleep(0.3)
    silent = head.silent_s
    assert silent >= 0.3
    node.beat()
    head.wait(60)
    before = time.monotonic()
    assert head.receive() == []
    assert head.silent_s <= time.monotonic() - before


def test_waits_are_bounded(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    head, node = pair(listener)
    with pytest.raises(LinkLost, match=r"within 0\.2 s"):
        head.expect(0.2)
    monkeypatch.setattr(links, "SEND_S", 0.2)
    with pytest.raises(LinkLost):
        send_much(node)  # nobody reads: the buffers fill up


def test_a_peer_that_never_ends_its_line_is_lost(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LONGEST_LINE", 10_000)
    head, node = pair(listener)
    node._socket.sendall(b"x" * 20_000)
    with pytest.raises(LinkLost, match="something else"):
        head.expect(10)


def test_a_node_that_is_killed_while_it_looks_at_itself_is_named(listener: socket.socket) -> None:
    """It had not read a heartbeat: the kernel resets the connection, which then has no peer any more."""
    head, node = pair(listener)
    head.send({})
    node.close()
    with pytest.raises(RunFailed, match=r"node 3 at 127\.0\.0\.1 joined and was lost"):
        _await_facts({3: head}, Silent())


def test_a_stranger_that_resets_is_no_node(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with pytest.raises(LinkLost):
        accept(listener, "secret")


def test_a_node_whose_former_processes_live_says_so(listener: socket.socket, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head would else know no more than that the connection was closed."""
    head, node = pair(listener)
    monkeypatch.setattr(agent, "_await_head", lambda *_: node)
    monkeypatch.setattr(agent, "LOCK_WAIT_S", 0.1)
    config = load(PACKAGE_ROOT / "configs" / "tiny.yaml", [f"runs_dir={tmp_path}"])
    paths = RunDir(config.run_dir)
    paths.root.mkdir()
    with RunLock(paths, path=paths.node_lock(3)), pytest.raises(RunFailed, match="is locked"):
        agent.serve(config, 3, ("127.0.0.1", 1))
    with pytest.raises(ConfigError, match=r"node 3 at 127\.0\.0\.1: .*/tiny is locked: supervisor pid"):
        _await_facts({3: head}, Silent())
