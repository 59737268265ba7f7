"""The head waits for its nodes: each is heard from, none waits in silence, and who does not come along is named."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fleet import Silent
from launch_nodes import config_of
from launch_processes import wait_for
from own_ports import own_ports

from siri_megatron.config import RunConfig
from siri_megatron.errors import RunFailed
from siri_megatron.files import write_json
from siri_megatron.launch import gather as gathering
from siri_megatron.launch.gather import gather
from siri_megatron.launch.key import make_key
from siri_megatron.launch.link import Link, Message, join
from siri_megatron.launch.node_facts import look
from siri_megatron.launch.nodes import Nodes
from siri_megatron.paths import RunDir


class Head(threading.Thread):
    """It gathers three nodes."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        config = config_of(root)
        self.config: RunConfig = config.model_copy(update={"launch": config.launch.model_copy(update={"nodes": 3})})
        self.paths = RunDir(root)
        root.mkdir()
        self.key = make_key(self.paths.key)
        self.address = ("127.0.0.1", own_ports(1)[0])
        self.found: Nodes | RunFailed | None = None

    def run(self) -> None:
        try:
            self.found = gather(self.config, self.address, self.key, Silent())
        except RunFailed as error:
            self.found = error

    def listens(self) -> bool:
        try:
            socket.create_connection(self.address, timeout=5).close()  # a stranger, who is not taken for a node
        except OSError:
            return False
        return True

    def joined(self, node: int) -> Link:
        """The link of a node, which has been asked what it is."""
        wait_for(self.listens, "the head to listen")
        link = join(self.address, self.key, node)
        assert "probe" in first_word(link)
        return link

    def describes_itself(self, node: int, link: Link) -> None:
        facts = look(self.config, node, address="127.0.0.1", interface="lo", ports=(),
                     nonce=json.loads(self.paths.probe.read_text())["nonce"])
        write_json(self.paths.node(node), facts.to_json())
        link.send({"facts": facts.to_json()})


def first_word(link: Link) -> Message:
    """The next message that is no heartbeat."""
    while not (message := link.expect(60)):
        pass
    return message


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    head = Head(tmp_path / "run")
    head.start()
    yield head
    head.join(120)
    assert not head.is_alive()


def test_who_is_ready_hears_from_the_head_while_another_is_slow(head: Head) -> None:
    """Else it takes the head for lost after launch.node_timeout_s, and a slow node costs the run a quick one."""
    slow, quick = head.joined(1), head.joined(2)
    head.describes_itself(2, quick)
    assert [quick.expect(20) for _ in range(4)] == [{}] * 4
    head.describes_itself(1, slow)
    head.join(60)
    assert isinstance(head.found, Nodes)
    assert [facts.node for facts in head.found.facts] == [0, 1, 2]
    head.found.close()


def test_who_says_nothing_of_itself_is_named(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LOOK_S", 1.0)
    quick = head.joined(2)
    head.describes_itself(2, quick)
    silent = head.joined(1)  # the time counts from here
    head.join(60)
    assert isinstance(head.found, RunFailed)
    assert "nodes [1] joined, and have not described themselves within 1 s" in head.found.what
    assert first_word(silent) == {"end": True}, "it may go"
    silent.close()


def test_who_is_lost_is_named_though_it_was_ready(head: Head) -> None:
    slow, quick = head.joined(1), head.joined(2)
    head.describes_itself(2, quick)
    quick.close()
    head.join(60)
    assert isinstance(head.found, RunFailed)
    assert "node 2 at 127.0.0.1 joined and was lost" in head.found.what
    slow.close()
