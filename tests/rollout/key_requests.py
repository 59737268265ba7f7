"""Requests as raw bytes, with the key nowhere, wrong, or in the wrong place, and along odd forms of a path."""

from __future__ import annotations

import socket
import urllib.parse
from collections.abc import Iterator, Sequence

TIMEOUT_S = 60.0
SOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


def wrong_headers(key: str) -> dict[str, Sequence[str]]:
    """What does not open a door -> the lines that say it."""
    right = f"Authorization: Bearer {key}"
    return {
        "no key": (), "a wrong key": ("Authorization: Bearer " + "0" * len(key),),
        "a part of the key": (right[:-1],), "more than the key": (right + "0",),
        "no scheme": (f"Authorization: {key}",),
        "another scheme": (f"Authorization: Basic {key}",), "lower case": (right.replace("Bearer", "bearer"),),
        "two keys": (right, "Authorization: Bearer x"), "the key twice": (right, right),
        "another header": (f"X-API-Key: {key}", f"Proxy-Authorization: Bearer {key}", f"X-Authorization: Bearer {key}"),
        "a cookie": (f"Cookie: Authorization=Bearer {key}; key={key}",),
        "a browser's question": ("Origin: http://evil.example", "Access-Control-Request-Method: POST",
                                 "Access-Control-Request-Headers: authorization"),
        "a forwarded request": ("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"),
    }


def odd_forms(path: str, key: str) -> Iterator[str]:
    """Spellings of a path that a server might read as the same one; the key where it does not belong."""
    yield from (path, f"/{path}", f"{path}/", f"/.{path}", f"/x/..{path}", path.upper(), f"{path}?key={key}",
                f"{path}?api_key={key}&token={key}&Authorization=Bearer+{key}", f"{path};x", f"{path}%2f", f"{path}%00",
                f"/%{ord(path[1]):02x}{path[2:]}" if len(path) > 1 else path, f"http://localhost{path}",
                f"//localhost{path}", f"/\\{path[1:]}")


def status(url: str, method: str, target: str, headers: Sequence[str] = (), body: bytes = b"{}") -> int:
    """The status that a server answers to these very bytes."""
    address = urllib.parse.urlsplit(url)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {address.netloc}", *headers]
    if "Connection: Upgrade" not in headers:
        lines += ["Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    with socket.create_connection((address.hostname, address.port), TIMEOUT_S) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        answer = b""
        while b"\r\n" not in answer and (part := connection.recv(4096)):
            answer += part
    return int(answer.split(b" ", 2)[1])
