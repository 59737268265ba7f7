"""Read a part of a large wheel over HTTP: the archive's directory, then the ranges in which the wanted files lie.

A GPU wheel has hundreds of megabytes, its Python sources a few. pip itself reads wheels so (its `fast-deps` feature);
its session and its file are used, so index, certificates, proxies and credentials are those that pip is configured
with. They are internal to pip and may change: whoever calls this falls back to the whole wheel.

Invariants:
- pinned: RECORD, the wheel's own list of hashes, has the given hash, and every file that is read has the hash that
  RECORD gives it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

GAP = 256 * 2**10
"""Bytes between two wanted files that are rather read than skipped by a further request."""
TIMEOUT_S = 120


class Unavailable(Exception):
    """Ranges of this wheel cannot be read here; says why."""


def wheel_url(requirement: str, options: Sequence[str]) -> tuple[str, str]:
    """Address and sha256 of the wheel that pip would take for `name==version`. Nothing is installed.

    Args:
        options: of pip, which choose the Python and the platform.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--dry-run", "--no-deps",
               "--ignore-installed", "--use-feature=fast-deps", "--target", "unused", "--report", "-", *options,
               requirement]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
        found = json.loads(said)["install"][0]["download_info"]
        return str(found["url"]), str(found["archive_info"]["hashes"]["sha256"])
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not find {requirement} within {TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().rpartition("\n")[2]
        raise Unavailable(f"pip does not find {requirement}: {said}") from None
    except (ValueError, LookupError) as error:
        raise Unavailable(f"pip tells of {requirement} in another form: {type(error).__name__}") from None


def extract(url: str, record_sha256: str, wanted: Callable[[str], bool], into: Path) -> int:
    """Write the wanted files of the wheel at `url` below `into`; returns the bytes that were asked for.

    Raises:
        Unavailable: the server gives no ranges, or pip has changed inside.
        ValueError: the content is not what `record_sha256` pins.
    """
    if not url.startswith(("http://", "https://")):
        raise Unavailable("it lies on this machine")
    try:
        from pip._internal.commands.download import DownloadCommand
        from pip._internal.exceptions import NetworkConnectionError
        from pip._internal.network.lazy_wheel import HTTPRangeRequestUnsupported, LazyZipOverHTTP
        from pip._vendor.requests import RequestException
    except ImportError as error:
        raise Unavailable(f"pip has changed inside: {error}") from None
    command = DownloadCommand("download", "")
    with command.main_context():
        try:
            options, _ = command.parse_args([])
            file = LazyZipOverHTTP(url, command.get_default_session(options))
            return _extract(file, record_sha256, wanted, into)
        except (HTTPRangeRequestUnsupported, NetworkConnectionError, RequestException) as error:
            raise Unavailable(f"its server gives no ranges: {type(error).__name__}") from None
        except (AttributeError, TypeError) as error:
            raise Unavailable(f"pip has changed inside: {error}") from None


def _extract(file: io.IOBase, record_sha256: str, wanted: Callable[[str], bool], into: Path) -> int:
    with zipfile.ZipFile(file) as archive:  # type: ignore[call-overload]
        names = [name for name in archive.namelist() if wanted(name)]
        spans = ranges(archive, names)
        for begin, end in spans:
            file.seek(begin)
            file.read(end - begin)  # the lazy file keeps what it has read
        check(archive, names, record_sha256)
        archive.extractall(into, members=names)
    return sum(end - begin for begin, end in spans)


def ranges(archive: zipfile.ZipFile, names: Iterable[str]) -> list[tuple[int, int]]:
    """The ranges [begin, end) of the archive in which these members lie, ascending, with gaps above `GAP` only."""
    wanted, spans = set(names), list[tuple[int, int]]()
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
    for member, end in zip(members, ends, strict=True):
        if member.filename not in wanted:
            continue
        if spans and member.header_offset - spans[-1][1] <= GAP:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((member.header_offset, end))
    return spans


def check(archive: zipfile.ZipFile, names: Iterable[str], record_sha256: str) -> None:
    """Every one of these members is what the pinned RECORD says.

    Raises:
        ValueError: RECORD, or a file, is another one.
    """
    place = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    record = archive.read(place)
    if (found := hashlib.sha256(record).hexdigest()) != record_sha256:
        raise ValueError(f"{place} has sha256 {found}, the lock pins {record_sha256}")
    hashes = {row[0]: row[1] for row in csv.reader(io.StringIO(record.decode()))}
    for name in names:
        digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
        if name != place and hashes.get(name) != f"sha256={digest}":
            raise ValueError(f"{name} has sha256={digest}, {place} says {hashes.get(name, 'nothing')}")
