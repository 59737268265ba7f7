"""Network interfaces of this machine: which one has an address, which address one has (Linux, IPv4)."""

from __future__ import annotations

import fcntl
import socket
import struct

from siri_megatron.errors import ConfigError

SIOCGIFADDR = 0x8915  # netdevice(7)


def address_of(interface: str) -> str:
    """IPv4 address of an interface; empty if it has none, or does not exist."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""


def interface_of(address: str) -> str:
    """The interface that has an address; empty if none has."""
    return next((name for _, name in socket.if_nameindex() if address_of(name) == address), "")


def chosen_address(interface: str, default: str) -> str:
    """The address of `launch.interface`, or the default where none is named.

    Raises:
        ConfigError: this machine has no such interface with an IPv4 address.
    """
    if not interface:
        return default
    if found := address_of(interface):
        return found
    there = ", ".join(f"{name} ({address_of(name) or 'no address'})" for _, name in socket.if_nameindex())
    raise ConfigError(f"launch.interface={interface} has no IPv4 address on {socket.gethostname()}, which has {there}",
                      rule="every node of a run has the interface launch.interface",
                      fix="name one that all nodes have, or leave it out")
