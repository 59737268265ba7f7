"""Files and directories that a reader sees whole or not at all, also after a power cut: written aside, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siri_megatron.errors import RunFailed

TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What a disk says that is full, read-only or broken."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; makes its directory."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with named(path), part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in `path`; None if the file is missing, torn, or no JSON in UTF-8."""
    try:
        value = json.loads(_text(path))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    """NFS loses a file that is renamed over while it is read (ESTALE, open(2)): the one in its place is read then."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return path.read_text(encoding="utf-8")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An error of the disk in here names the path: what write(2) and fsync(2) raise does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def disk_says(error: OSError, place: Path) -> str:
    """What failed, where, and how much room there is, in one line."""
    where = f" ({error.filename})" if error.filename not in (None, str(place)) else ""
    free = shutil.disk_usage(existing(place)).free
    return f"{place}: {error.strerror or error}{where}; {free:,} bytes free"


def disk_failed(error: OSError, run_dir: Path) -> RunFailed:
    """The error of a run that cannot write its files."""
    return RunFailed(disk_says(error, run_dir), rule="a run writes its ledger, records and verdict into its directory",
                     fix="make room, or whatever the file system asks for; then resume")


@contextmanager
def on_disk(place: Path) -> Iterator[None]:
    """What a disk says in here that takes no more is an error that tells the user what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in TAKES_NO_MORE:
            raise
        raise disk_failed(error, place) from error


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def replace_directory(part: Path, destination: Path) -> None:
    """Give a whole, synced directory its name. What has that name stays until then, and gets it back if that fails."""
    old = _former(destination)
    heal_directory(destination)
    replaced = destination.exists()
    if replaced:
        os.rename(destination, old)
    try:
        os.rename(part, destination)
    except BaseException:
        if replaced:
            os.rename(old, destination)
        raise
    sync_path(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


def heal_directory(destination: Path) -> None:
    """After a kill in `replace_directory`: the former directory gets its name back, or goes if the new one has it."""
    old = _former(destination)
    if destination.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.rename(old, destination)


def _former(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def sync_path(path: Path) -> None:
    """Make a file's content, or the renames and new files in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
