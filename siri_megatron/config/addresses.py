"""Which addresses servers of a run may have: loopback or private ones, never all interfaces or public ones. Pure."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
LOCAL = ("localhost",)
FIX = "127.0.0.1 for one machine, or the node's address on the cluster's private network (`ip -4 addr`)"


def private_host(host: str) -> str:
    """The host, if it may be one of a run. A name may be one only if what it stands for is: `private_address`.

    Raises:
        ValueError: it is no IPv4 address or name, is unspecified (all interfaces), or public.
    """
    try:
        return private_address(host)
    except ipaddress.AddressValueError:
        if NAME.fullmatch(host) and not host.replace(".", "").isdigit():
            return host
    raise ValueError(f"{host!r} is no IPv4 address and no host name: {FIX}")


def private_address(address: str) -> str:
    """The IPv4 address, if it is a loopback or private one.

    Raises:
        ValueError: it is another; AddressValueError: it is no IPv4 address.
    """
    parsed = ipaddress.IPv4Address(address)
    if parsed.is_unspecified:
        raise ValueError(f"{address} binds every interface, public ones included: {FIX}")
    if parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        raise ValueError(f"{address} is not a private address: {FIX}")
    return address


def is_local(host: str) -> bool:
    """It is this machine, whichever that is."""
    try:
        return host in LOCAL or ipaddress.IPv4Address(host).is_loopback
    except ipaddress.AddressValueError:
        return False


def server_url(text: str) -> str:
    """An address `http://HOST:PORT`, without a slash at its end.

    Raises:
        ValueError: it is something else, or its host may not be one of a run.
    """
    parts = urllib.parse.urlsplit(text.rstrip("/"))
    plain = parts.scheme == "http" and not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if not plain or parts.hostname is None or not parts.port:
        raise ValueError(f"{text!r} is not http://HOST:PORT")
    private_host(parts.hostname)
    return f"http://{parts.hostname}:{parts.port}"
