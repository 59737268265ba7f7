"""The directory that a conversion makes: built out of sight, there whole or not at all.

Invariants:
- whole_or_nothing: DST appears by a rename when every file is on disk; an error or Ctrl-C removes what was built, a
  kill leaves hidden directories that the next call removes (.DST.converting) or gives back their name (.DST.old).
- nothing_lost: an existing DST is replaced only with `force`, only if a conversion or transformers could have made it,
  and only once the new one is whole.
- one_at_a_time: two conversions into one DST do not disturb each other; the second is refused.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siri_megatron.convert.place import MARK, TRACKER
from siri_megatron.errors import ModelError
from siri_megatron.files import heal_directory, replace_directory, sync_path

OURS = ("config.json", TRACKER, MARK)
"""A directory with one of these may be replaced."""


def check_destination(destination: Path, sources: list[Path], *, force: bool) -> None:
    """Refuse a destination that holds something, or that is (in) a source.

    Raises:
        ModelError: names it.
    """
    for source in sources:
        if _inside(destination, source) or _inside(source, destination):
            raise ModelError(f"destination {destination} and source {source} overlap",
                             rule="a conversion writes a directory of its own", fix="give another destination")
    heal_directory(destination.resolve())
    if destination.is_dir() and any(destination.iterdir()):
        if not force:
            raise ModelError(f"destination {destination} exists and is not empty",
                             rule="nothing is overwritten unasked", fix="give another destination, or add --force")
        if not any((destination / name).is_file() for name in OURS):
            raise ModelError(f"destination {destination} holds other things than a model",
                             rule=f"--force replaces directories with one of {', '.join(OURS)}",
                             fix="give another destination, or empty it by hand")
    elif destination.exists() and not destination.is_dir():
        raise ModelError(f"destination {destination} is a file", rule="a directory is written",
                         fix="give another destination")


def check_space(destination: Path, needed: int) -> None:
    """Refuse what will not fit.

    Raises:
        ModelError: gives both numbers.
    """
    place = next(parent for parent in destination.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ModelError(f"{destination} needs {needed:,} bytes, {place} has {free:,} free",
                         rule="the whole result fits beside what is there",
                         fix="make room, or give another destination")


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A hidden directory to write into; it becomes the destination (where a link leads) at the end of the `with`.

    Raises:
        ModelError: another conversion is writing there, or the directory cannot be made.
    """
    destination = destination.resolve()
    part = destination.with_name(f".{destination.name}.converting")
    with _claimed(part):
        whole = False
        try:
            yield part
            _sync(part)
            replace_directory(part, destination)
            whole = True
        except OSError as error:
            raise ModelError(f"{part} cannot be written: {error}", rule="the whole result is on disk before it appears",
                             fix="make room, or give another destination") from None
        finally:
            if not whole:
                shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """Make the directory, lock it, and empty it of what a killed conversion left. The lock dies with this process."""
    held = None
    try:
        try:
            part.mkdir(parents=True, exist_ok=True)
            held = os.open(part, os.O_RDONLY)
            _lock(part, held)
            for item in part.iterdir():
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        except OSError as error:
            raise ModelError(f"{part} cannot be made: {error}", rule="the result is built beside its destination",
                             fix="give another destination") from None
        yield
    finally:
        if held is not None:
            os.close(held)


def _lock(part: Path, held: int) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = part.is_dir() and os.path.samestat(part.stat(), os.fstat(held))  # else: finished between open and lock
    except BlockingIOError:
        mine = False
    if not mine:
        raise ModelError(f"another conversion is writing {part}", rule="one conversion a destination",
                         fix="wait for it, or give another destination")


def _sync(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        sync_path(path)


def _inside(path: Path, other: Path) -> bool:
    return path.resolve().is_relative_to(other.resolve())
