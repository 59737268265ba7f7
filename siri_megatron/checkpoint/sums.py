"""Checksums of a checkpoint's files: taken by who wrote one, kept in the commit record, held against before a load.

torch's reader does not look at those inside its files: a bit that flipped in a weight would be trained on. Each rank
takes the sum of the file it wrote, and looks through its share of the files when a run resumes: every byte is read
twice by all ranks together, not by each.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

CHUNK = 1 << 24


def sum_of(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file. Raises OSError."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def first_damaged(directory: Path, files: Mapping[str, Sequence[int]], rank: int, ranks: int) -> str | None:
    """What is wrong with the first damaged file of this rank's share; None: they are as they were written."""
    for name in sorted(files)[rank::ranks]:
        try:
            found = sum_of(directory / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != list(files[name]):
            return (f"{name} has {found[0]} bytes with CRC-32 {found[1]:08x}, "
                    f"written were {files[name][0]} with {files[name][1]:08x}")
    return None
