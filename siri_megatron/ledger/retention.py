"""Which steps of the ledger may go, and how they go.

What a step is still read for once it is consumed by a commit: dynamic sampling estimates from the last
`config.refill.HISTORY` steps, a replay trains from all of them. Everything else that a resume needs is in the commit
record, so the steps behind the newest commit are the run's own history.

Invariants:
    nothing_unconsumed_goes: a step that the newest commit has not consumed stays, and so do the `keep` steps before it.
    whole_or_gone: a step is renamed before it is deleted, so after a kill it is whole or is no step; `recover` deletes
        what is left of it.
    removal_ends_no_run: what cannot be removed now (a file that somebody holds open on NFS) stays for the next time.
    everything_by_default: without `checkpoint.keep_ledger` nothing is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from siri_megatron.files import sync_path
from siri_megatron.ledger.index import step_path

REMOVED = ".removed"


def removable(closed: Sequence[int], committed: int, keep: int | None) -> list[int]:
    """The closed steps that may go.

    Args:
        committed: the newest commit holds the state before this step.
        keep: consumed steps that are kept; None: all.
    """
    return [] if keep is None else [step for step in closed if step < committed - keep]


def remove_steps(ledger_root: Path, steps: Sequence[int]) -> None:
    """Take closed steps out of a ledger."""
    gone = []
    for step in steps:
        path = step_path(ledger_root, step)
        with suppress(OSError):
            gone.append(path.rename(path.with_name(path.name + REMOVED)))
    if gone:
        sync_path(ledger_root)
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(ledger_root: Path) -> list[str]:
    """End what a killed `remove_steps` began; says what is gone."""
    left = sorted(ledger_root.glob(f"step-??????{REMOVED}"))
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return [f"removed what was left of {path.name.removesuffix(REMOVED)}" for path in left if not path.exists()]
