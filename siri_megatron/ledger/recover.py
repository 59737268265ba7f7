"""Bring a ledger back to whole steps and groups after a kill. Closed steps are never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from siri_megatron.ledger import index as idx
from siri_megatron.ledger.retention import remove_leftovers


def recover(ledger_root: Path) -> list[str]:
    """Cut the torn tail of every open step, remove those without one whole group; says what it did.

    Steps that were being removed are removed.
    """
    done = remove_leftovers(ledger_root)
    for path in sorted(ledger_root.glob("step-??????.open")):
        size = (path / idx.DATA).stat().st_size if (path / idx.DATA).exists() else 0
        index = salvage(path)
        if index is None or not index.segments:
            discard(path)
            done.append(f"removed {path.name}: no whole group in its {size} bytes")
        else:
            cut = size - index.segments[-1].end
            done.append(f"kept {len(index.segments)} whole groups of {path.name}, cut {cut} torn bytes")
    return done


def salvage(open_path: Path) -> idx.Index | None:
    """Cut an open step to its longest prefix of whole groups; None if its header is broken.

    The closing line and the end-of-stream mark of a writer that died before the rename are cut as well: the next
    writer closes the step again.
    """
    data, index_file = open_path / idx.DATA, open_path / idx.INDEX
    text = index_file.read_bytes() if index_file.exists() else b""
    index = idx.parse(text, index_file)
    content = data.read_bytes() if data.exists() else b""
    whole = idx.intact_segments(index, content) if index is not None else -1
    if index is None or whole < 0:
        return None
    segments = index.segments[:whole]
    os.truncate(data, segments[-1].end if segments else index.header.end)
    kept = sum(len(line) for line in text.splitlines(keepends=True)[:1 + whole])
    os.truncate(index_file, kept)
    return idx.Index(index.header, segments, None, kept)


def discard(open_path: Path) -> None:
    shutil.rmtree(open_path)
