"""Ports that are held without a race, and clear words where one is taken."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import pytest
from own_ports import own_ports

from siri_megatron.errors import ConfigError
from siri_megatron.launch.ports import PortHolder, holder

LOOPBACK = "127.0.0.1"


def bind_as_vllm(port: int) -> socket.socket:
    """vllm.entrypoints.launchers.launcher.create_server_socket with one API server: SO_REUSEADDR only."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((LOOPBACK, port))
    return server


def test_server_can_take_a_held_port() -> None:
    with PortHolder(LOOPBACK, 0, 2) as held, bind_as_vllm(held.ports[1]) as server:
        server.listen()
        with socket.create_connection((LOOPBACK, held.ports[1]), timeout=5) as client:
            assert client.getpeername()[1] == held.ports[1]


def test_vllm_still_binds_like_that() -> None:
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        pytest.skip("vllm is not installed here")
    text = Path(package.origin).with_name("entrypoints").joinpath("launchers/launcher.py").read_text()
    body = text[text.index("def create_server_socket"):text.index("def create_server_unix_socket")]
    assert "SO_REUSEADDR, 1" in body
    assert "if reuse_port:" in body


def test_kernel_gives_a_held_port_to_nobody_who_asks_for_a_free_one() -> None:
    with PortHolder(LOOPBACK, 0, 4) as held:
        for _ in range(2000):
            with bind_as_vllm(0) as other:
                assert other.getsockname()[1] not in held.ports


def test_ports_are_distinct_and_free_again_afterwards() -> None:
    with PortHolder(LOOPBACK, 0, 8) as held:
        assert len(set(held.ports)) == 8
    with PortHolder(LOOPBACK, held.ports[0], 1) as again:
        assert again.ports == held.ports[:1]


def test_base_port_counts_up() -> None:
    base, following = own_ports(2)
    with PortHolder(LOOPBACK, base, 2) as held:
        assert held.ports == [base, following]


def test_listener_is_named_with_its_pid() -> None:
    with bind_as_vllm(0) as server:
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 is in use by pid {os.getpid()} \("):
            PortHolder(LOOPBACK, port, 1)


def test_second_port_in_use_releases_the_first() -> None:
    first, second = own_ports(2)
    with bind_as_vllm(second) as server:
        server.listen()
        with pytest.raises(ConfigError, match=f"port {second} "):
            PortHolder(LOOPBACK, first, 2)
        bind_as_vllm(first).close()


def test_port_of_a_connection_that_lives_is_refused() -> None:
    """It looks like one that lingers until it is bound."""
    with bind_as_vllm(0) as server:
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            port = client.getsockname()[1]
            with pytest.raises(ConfigError, match=rf"port {port} .* by a connection of pid {os.getpid()} \("):
                PortHolder(LOOPBACK, port, 1)


def test_port_held_by_another_run_that_is_starting_is_refused() -> None:
    with PortHolder(LOOPBACK, 0, 1) as held:
        with pytest.raises(ConfigError, match="another run that is starting"):
            PortHolder(LOOPBACK, held.ports[0], 1)
        assert "without listening yet" in holder(held.ports[0])


def test_lingering_connections_of_an_earlier_run_do_not_block_the_port() -> None:
    [port] = own_ports(1)
    with bind_as_vllm(port) as server:
        server.listen()
        with socket.create_connection((LOOPBACK, port), timeout=5):
            server.accept()[0].close()  # the server closes first: TIME_WAIT stays on its side
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind((LOOPBACK, port))
    with PortHolder(LOOPBACK, port, 1) as held:
        assert held.ports == [port]


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_foreign_host_is_refused_by_name(host: str) -> None:
    with pytest.raises(ConfigError, match=f"engines.host: {host} is not an address of this machine"):
        PortHolder(host, 0, 1)
