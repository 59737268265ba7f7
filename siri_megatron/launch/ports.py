"""Ports without races: each is held, bound but not listening, from before the engine starts until the run ends.

On Linux two sockets with SO_REUSEADDR may bind one address as long as none of them listens. vLLM binds with
SO_REUSEADDR, so it can take a port that the supervisor holds, while the kernel hands a held port to nobody who asks
for a free one (bind to port 0, or an outgoing connection). vLLM does not set SO_REUSEPORT, so holding by that fails.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from siri_megatron.errors import ConfigError

LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
NOBODY = "0"  # inode there of a connection that no process has any more


class PortHolder:
    """Holds `count` ports on `host`: base_port, base_port+1, ..., or free ones if base_port is 0.

    Raises:
        ConfigError: a wanted port is taken; names the port and, where the kernel tells, who has it.
    """

    def __init__(self, host: str, base_port: int, count: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            for index in range(count):
                self._sockets.append(_hold(host, base_port + index if base_port else 0))
        except BaseException:
            self.close()
            raise
        self.ports: list[int] = [held.getsockname()[1] for held in self._sockets]

    def close(self) -> None:
        for held in self._sockets:
            held.close()

    def __enter__(self) -> PortHolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hold(host: str, port: int) -> socket.socket:
    if port and _taken(host, port):
        raise _in_use(host, port)
    try:
        return _bind(host, port, reuse=True)
    except OSError as error:  # a connection from there, which _taken took for one that lingers
        _explain(error, host, port)
        raise _in_use(host, port) from None


def _taken(host: str, port: int) -> bool:
    """True if somebody listens on the port, or holds it as we do; closed connections that linger do not count."""
    try:
        _bind(host, port, reuse=False).close()
    except OSError as error:
        _explain(error, host, port)
        return not _lingers(port)
    return False


def _lingers(port: int) -> bool:
    """The port is only in the table as the address of old connections: there are some, and none listens."""
    states = [row[3] for row in _tcp_rows(port)]
    return bool(states) and LISTEN not in states


def _bind(host: str, port: int, *, reuse: bool) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise _no_address(host, error) from None
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if reuse:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host, error) from None
        raise
    return held


def _explain(error: OSError, host: str, port: int) -> None:
    if error.errno == errno.EACCES:
        raise ConfigError(f"engines.base_port: port {port} on {host} may not be bound: {error.strerror}",
                          rule="ports below 1024 belong to the system", fix="choose engines.base_port >= 1024, or 0")
    if error.errno != errno.EADDRINUSE:
        raise error


def _in_use(host: str, port: int) -> ConfigError:
    return ConfigError(f"engines.base_port: port {port} on {host} is in use by {holder(port)}",
                       rule="engine i listens on base_port + i, and nobody else may use that port",
                       fix="end that process, choose another engines.base_port (the kernel gives connections those of "
                           "/proc/sys/net/ipv4/ip_local_port_range), or 0 for free ports")


def _no_address(host: str, error: OSError) -> ConfigError:
    return ConfigError(f"engines.host: {host} is not an address of this machine ({error.strerror})",
                       rule="engines and collector bind engines.host",
                       fix="give 127.0.0.1, or the address of a private interface of this machine")


def holder(port: int) -> str:
    """Who listens on `port`, or is connected from it: `pid 12 (command line)`, as far as this user may know."""
    rows = _tcp_rows(port)
    if listening := {row[9] for row in rows if row[3] == LISTEN}:
        return _owner(listening)
    if connected := {row[9] for row in rows} - {NOBODY}:
        return f"a connection of {_owner(connected)}"
    return "a process that holds it without listening yet (another run that is starting?)"


def _owner(inodes: set[str]) -> str:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if inodes & _socket_inodes(pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"pid {pid} ({command[:100]})"
    return "a process of another user"


def _tcp_rows(port: int) -> list[list[str]]:
    """Of /proc/net/tcp and tcp6, with that local port, split: [1] address:port in hex, [3] state, [9] inode."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [line.split() for path in tables if path.exists() for line in path.read_text().splitlines()[1:]]
    return [row for row in rows if int(row[1].rpartition(":")[2], 16) == port]


def _socket_inodes(pid: str) -> set[str]:
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}
