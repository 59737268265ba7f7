"""Before anything starts on several nodes: the head waits for every agent, and checks that they can hold the run."""

from __future__ import annotations

import secrets
import select
import socket
import time
from contextlib import ExitStack, suppress

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, RunFailed
from siri_megatron.files import read_json, write_json
from siri_megatron.launch.display import Display
from siri_megatron.launch.interface import chosen_address, interface_of
from siri_megatron.launch.link import Link, LinkLost, Message, accept
from siri_megatron.launch.node_facts import VISIBLE_S, NodeFacts, check_nodes, hold_ports, look
from siri_megatron.launch.nodes import Nodes, RemoteNode
from siri_megatron.launch.ports import holder
from siri_megatron.paths import RunDir

LOOK_S = 60.0
"""How long a node may take to look at itself, once all have joined."""
POLL_S = 0.1


def gather(config: RunConfig, head: tuple[str, int], key: str, display: Display) -> Nodes:
    """Wait for the agent of every further node, and check all nodes.

    Raises:
        ConfigError: a node cannot hold its part of the run.
        RunFailed: not every node came within launch.join_timeout_s.
    """
    paths, nonce = RunDir(config.run_dir), secrets.token_hex(8)
    for index in range(1, config.launch.nodes):
        paths.node(index).unlink(missing_ok=True)
    write_json(paths.probe, {"nonce": nonce})
    with _listen(head) as listener:
        address = chosen_address(config.launch.interface, str(listener.getsockname()[0]))
        with ExitStack() as undo:
            held = undo.enter_context(hold_ports(config, 0, address))
            mine = look(config, 0, address=address, interface=interface_of(address), ports=held.ports, nonce=nonce)
            links: dict[int, Link] = {}
            undo.callback(_dismiss, links)
            _await_links(listener, config, key, nonce, display, links)
            facts = _await_facts(links, display)
            _await_files(paths, links, mine)
            remote = [RemoteNode(facts[index], links[index], config.launch.node_timeout_s) for index in sorted(links)]
            nodes = Nodes(mine, remote, held, key)
            check_nodes(nodes.facts, config, nonce)
            undo.pop_all()
            return nodes


def _dismiss(links: dict[int, Link]) -> None:
    """The run does not come about: the agents have started nothing yet, and may go."""
    for link in links.values():
        with suppress(LinkLost):
            link.send({"end": True})
        link.close()


def _listen(head: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(head)
    except OSError as error:
        raise ConfigError(f"the head cannot listen on {head[0]}:{head[1]} ({error.strerror}): {holder(head[1])}",
                          rule="the first node listens on --head for the others",
                          fix="another job on this node has the port: submit again") from None


def _await_links(listener: socket.socket, config: RunConfig, key: str, nonce: str, display: Display,
                 links: dict[int, Link]) -> None:
    """Fill `links` with those of all further nodes."""
    wanted, started = set(range(1, config.launch.nodes)), time.monotonic()
    while missing := sorted(wanted - links.keys()):
        waited = time.monotonic() - started
        display.status(f"nodes {1 + len(links)}/{config.launch.nodes} joined, {waited:.0f} s")
        if waited > config.launch.join_timeout_s:
            raise RunFailed(f"nodes {missing} of 0..{config.launch.nodes - 1} did not join within "
                            f"launch.join_timeout_s={config.launch.join_timeout_s:g} s",
                            rule="every node of the allocation starts its agent and reaches the head",
                            fix="read the job's log for what they say; is the head's port open between nodes?")
        if select.select([listener], [], [], 1.0)[0]:
            _take(listener, key, nonce, wanted, links)
        for link in links.values():
            link.beat()


def _take(listener: socket.socket, key: str, nonce: str, wanted: set[int], links: dict[int, Link]) -> None:
    try:
        node, link = accept(listener, key)
        link.send({"probe": nonce})
    except LinkLost:
        return  # a stranger, or a node that has read an earlier key: it tries again
    if node not in wanted:
        link.close()
        return
    if node in links:
        links[node].close()
    links[node] = link


def _await_facts(links: dict[int, Link], display: Display) -> dict[int, NodeFacts]:
    """What every node says of itself. Those that have said it hear from the head while it waits for the others."""
    facts: dict[int, NodeFacts] = {}
    deadline = time.monotonic() + LOOK_S
    while missing := sorted(links.keys() - facts.keys()):
        display.status(f"nodes {1 + len(facts)}/{1 + len(links)} looked at")
        if time.monotonic() > deadline:
            raise RunFailed(f"nodes {missing} joined, and have not described themselves within {LOOK_S:g} s",
                            rule="a node that has joined looks at itself and tells the head",
                            fix="read the job's log: what does such a node wait for (a driver, the run directory)?")
        for node, link in links.items():
            if (message := _heard(link, node)) is not None:
                facts[node] = _facts(message, link, node)
        links[missing[0]].wait(POLL_S)
    return facts


def _heard(link: Link, node: int) -> Message | None:
    """The only message that an agent sends unasked, once it is there; the agent is sent a heartbeat if one is due."""
    try:
        return next(iter(link.receive()), None)
    except LinkLost as lost:
        raise RunFailed(f"node {node} at {link.peer_address} joined and was lost: {lost}",
                        rule="a node that has joined describes itself", fix="read the job's log") from None


def _facts(message: Message, link: Link, node: int) -> NodeFacts:
    if refused := message.get("refused"):
        raise ConfigError(f"node {node} at {link.peer_address}: {refused['what']}", rule=refused["rule"],
                          fix=refused["fix"])
    return NodeFacts.from_json(message["facts"])


def _await_files(paths: RunDir, links: dict[int, Link], mine: NodeFacts) -> None:
    """What the nodes have written into the run directory is seen here."""
    deadline = time.monotonic() + VISIBLE_S
    while unseen := [node for node in sorted(links) if (read_json(paths.node(node)) or {}).get("node") != node]:
        if time.monotonic() > deadline:
            raise ConfigError(f"{mine.label} does not see {paths.node(unseen[0])}, which node {unseen[0]} has written",
                              rule="runs_dir lies on a file system that all nodes share and write",
                              fix="choose a shared runs_dir=..., and mount it in the container")
        for link in links.values():
            link.beat()
        time.sleep(POLL_S)
