"""The checkpoints of a run directory: resume point, retention, tags, phase-end exports. `saver` writes them.

    checkpoints/step-000012/megatron/...   model and optimizer, any layout
    checkpoints/step-000012/commit.json    written last; without it the directory is debris
    tags.json                              {"iter1-compressed": {"step": 12, "export": "export/iter1-compressed"}, ...}

Invariants:

- committed_or_nothing: a kill at any moment leaves the former commits usable and at most debris beside them.
- retention: the newest `checkpoint.keep` commits and every tagged one stay; the rest goes after the next commit.
- removal_undoes_no_commit: an old commit that cannot be removed fails no new one.
- only_its_own: what is not named as a commit (a copy that somebody made) is left alone, and so is a damaged one.
- tag_after_commit: tags.json names a step only after its commit, an export only once it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.checkpoint import record as records
from siri_megatron.checkpoint.hf_export import export_hf
from siri_megatron.checkpoint.megatron_state import check_files, load_state
from siri_megatron.checkpoint.record import CommitRecord, commits
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.errors import ModelError
from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir

if TYPE_CHECKING:
    from siri_megatron.learner.learner import Learner

STATE = "megatron"


def restore(paths: RunDir, learner: Learner, record: CommitRecord) -> None:
    """Load the committed model and optimizer into the learner, in whatever layout it has now. Collective.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    directory = paths.checkpoint(record.step) / STATE
    check_files(directory, record.files)
    load_state(learner, directory)


def export(paths: RunDir, learner: Learner, config: RunConfig, tag: str) -> None:
    """Write export/TAG from the learner's weights, which are those just committed under this tag. Collective."""
    export_hf(learner, config.model.path, paths.export / tag)
    if learner.is_rank0:
        set_tag(paths, tag, export=str((paths.export / tag).relative_to(paths.root)))


def make_record(config: RunConfig, *, step: int, tag: str | None, decisions: dict[str, Any]) -> CommitRecord:
    return CommitRecord(
        step=step, tag=tag, decisions=decisions, consumed_prompts=step * config.rollout.prompts_per_step,
        ledger_steps=step, weight_version=str(step), identity=identity_hash(config), runtime=runtime_hash(config))


def runtime_hash(config: RunConfig) -> str:
    """Hash of the whole configuration, layout and paths included."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


def latest(paths: RunDir) -> CommitRecord | None:
    """The commit that a resume starts from; None if there is none."""
    found = commits(paths)
    return found[-1] if found else None


def recover(paths: RunDir) -> list[str]:
    """Remove what a killed save or export left half-written. Call while no learner runs; says what it removed.

    What tags.json does not know of the commits and their exports (the run was killed, the file is damaged) is noted.

    Raises:
        ModelError: a commit record is damaged; nothing was removed.
    """
    found = {directory: records.read_record(directory) for directory in records.directories(paths)}
    debris = [directory for directory, record in found.items() if record is None]
    debris += [directory for directory in paths.export.glob(".*") if directory.is_dir()]
    for directory in debris:
        shutil.rmtree(directory)
    for record in filter(None, found.values()):
        if record.tag and (missing := _known(paths, record).items() - tags(paths).get(record.tag, {}).items()):
            set_tag(paths, record.tag, **dict(missing))
    return [f"removed half-written {directory.relative_to(paths.root)}" for directory in sorted(debris)]


def _known(paths: RunDir, record: CommitRecord) -> dict[str, Any]:
    """What tags.json says of a phase end."""
    export = paths.export / str(record.tag)
    exported = {"export": str(export.relative_to(paths.root))} if (export / "config.json").is_file() else {}
    return {"step": record.step} | exported


def prune(paths: RunDir, *, keep: int) -> None:
    """Remove debris, and commits that are neither tagged nor among the newest `keep`.

    What cannot be removed now (a file that somebody holds open on NFS) stays for the next time: the new commit is made.
    """
    found = dict(_readable(paths))
    kept = kept_steps(filter(None, found.values()), keep)
    for directory, record in found.items():
        if record is None or record.step not in kept:
            with suppress(OSError):
                remove(directory)


def _readable(paths: RunDir) -> Iterator[tuple[Path, CommitRecord | None]]:
    """Commits and debris: all but what is damaged, which is the next start's to refuse and somebody's to look at."""
    for directory in records.directories(paths):
        with suppress(ModelError):
            yield directory, records.read_record(directory)


def remove(directory: Path) -> None:
    """Remove a commit, or what is left of one; of its files as many as can be.

    Raises:
        OSError: its record cannot be removed, so it is a commit still.
    """
    (directory / records.FILE).unlink(missing_ok=True)  # first: a half-removed checkpoint must not look whole
    shutil.rmtree(directory, ignore_errors=True)


def kept_steps(found: Iterable[CommitRecord], keep: int) -> set[int]:
    """Steps whose commits stay."""
    by_age = sorted(found, key=lambda record: record.step)
    return {record.step for record in by_age if record.tag} | {record.step for record in by_age[-keep:]}


def tags(paths: RunDir) -> dict[str, dict[str, Any]]:
    """tags.json: name -> {"step", "export"}; empty if there is none yet, or it is damaged (`recover` makes it anew)."""
    return read_json(paths.tags) or {}


def set_tag(paths: RunDir, tag: str, **fields: Any) -> None:
    """Add fields to a tag's entry."""
    known = tags(paths)
    known[tag] = known.get(tag, {}) | fields
    write_json(paths.tags, known)
