"""Commits the state of a run: at once or in the background, at most one at a time.

    start      rank 0 makes the directory ─► every rank plans (and copies) ─► every rank writes its file in a thread
    all_written   asked by rank 0 between two steps; nobody waits
    complete   every rank waits for its own thread and reports ─► rank 0 finishes the files, then the commit record

What went wrong on a rank travels as a report over the control plane, so that no rank waits in a collective for one that
failed: collectives are entered only after every rank has said that it could write.

Invariants:
- record_last: the commit record is written only after every rank's file is on disk.
- same_outcome: `complete` returns the same outcome on every rank.
- failure_leaves_the_former: a save that fails removes what it wrote and touches no other commit.
- waits_are_bounded: by checkpoint.timeout_s; whoever gives up says what it waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.checkpoint import record as records
from siri_megatron.checkpoint.megatron_state import plan_save, together
from siri_megatron.checkpoint.record import CommitRecord
from siri_megatron.checkpoint.state_writer import StateWriter, Written
from siri_megatron.checkpoint.store import STATE, make_record, prune, remove, set_tag
from siri_megatron.config import RunConfig
from siri_megatron.errors import RunFailed
from siri_megatron.files import disk_says
from siri_megatron.paths import RunDir

if TYPE_CHECKING:
    from siri_megatron.learner.learner import Learner

MARGIN_S = 30.0
"""How much longer the other ranks wait for rank 0's word than rank 0 waits for theirs."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended; the same on every rank."""

    step: int
    tag: str | None
    failure: str | None
    """What went wrong, in one line; None: the commit exists."""


@dataclass
class _Save:
    """The save in flight."""

    record: CommitRecord
    failure: str | None = None
    """It failed before anything was written."""
    writer: StateWriter | None = None
    written: Future[Written] | None = None
    reported: bool = False


class Saver:
    """Saves of one run. Every method is called by all ranks with the same arguments, but for `all_written`."""

    def __init__(self, paths: RunDir, learner: Learner, config: RunConfig) -> None:
        self._paths, self._learner, self._config = paths, learner, config
        self._rank0, self._timeout_s = learner.is_rank0, config.checkpoint.timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None

    @property
    def step(self) -> int | None:
        """The step whose commit is in flight."""
        return self._save.record.step if self._save else None

    def start(self, step: int, tag: str | None, decisions: dict[str, Any], *, background: bool) -> None:
        """Begin to commit the state before `step`. With `background` the state may change once this returns.

        Raises:
            RunFailed: another rank fell out.
        """
        assert self._save is None, "at most one save is in flight"
        save = _Save(make_record(self._config, step=step, tag=tag, decisions=decisions))
        directory = self._paths.checkpoint(step)
        save.failure = self._share(f"directory-{step}", lambda: self._attempt(lambda: _make(directory / STATE), 0))
        if save.failure is None:
            save.writer = plan_save(self._learner, directory / STATE, background=background,
                                    checksums=self._config.checkpoint.checksums)
            save.written = self._thread.submit(save.writer.write)
        self._save = save

    def all_written(self) -> bool:
        """Has every rank's part of the save in flight ended, well or not? Known on rank 0 only; False elsewhere."""
        if self._save is None:
            return False
        if self._save.written is None:
            return self._rank0
        if self._save.written.done():
            self._report(self._save)
        control = self._learner.control
        return self._rank0 and (control.all_reported(self._name(self._save)) if control else self._save.reported)

    def complete(self) -> Outcome:
        """Wait for the save in flight and commit it.

        Raises:
            RunFailed: a rank was not done within checkpoint.timeout_s, or fell out.
        """
        assert self._save is not None, "a save is in flight"
        save, self._save = self._save, None
        failure = save.failure or self._write_failure(save) or self._commit(save)
        if failure and self._rank0:
            with suppress(OSError):  # it may be the reason of the failure; without a record it is debris
                remove(self._paths.checkpoint(save.record.step))
        return Outcome(save.record.step, save.record.tag, failure)

    def _write_failure(self, save: _Save) -> str | None:
        """What a rank could not write, as rank 0 tells everyone; None when all files are on disk."""
        assert save.written is not None
        what, place = f"checkpoint of step {save.record.step}", self._paths.checkpoint(save.record.step)
        with suppress(WaitedTooLong):
            save.written.exception(self._timeout_s)
        if not save.written.done():
            raise RunFailed(f"{what}: rank {self._learner.rank} has not written {place} within {self._timeout_s:g} s",
                            rule=f"checkpoint.timeout_s={self._timeout_s:g}",
                            fix="see whether the file system answers; raise the timeout if it is slow")
        own = self._report(save)
        control = self._learner.control
        if control is None:
            return own

        def first_failure() -> str | None:
            reports = control.reports(self._name(save), timeout_s=self._timeout_s + MARGIN_S, what=what)
            return next((report for report in reports if report), None)
        return self._share(f"written-{save.record.step}", first_failure)

    def _report(self, save: _Save) -> str | None:
        """Tell rank 0, once, how this rank's part ended."""
        assert save.writer is not None
        assert save.written is not None
        failure = self._attempt(save.written.result, save.writer.bytes)
        if not save.reported and self._learner.control:
            self._learner.control.report(self._name(save), failure)
        save.reported = True
        return failure

    def _commit(self, save: _Save) -> str | None:
        """Everything is on disk: make it a checkpoint."""
        assert save.writer is not None
        assert save.written is not None
        with together(f"checkpoint of step {save.record.step}"):
            written = save.writer.gather(save.written.result())
        return self._share(f"committed-{save.record.step}",
                           lambda: self._attempt(lambda: self._finish(save.writer, save.record, written), 0))

    def _finish(self, writer: Any, record: CommitRecord, written: Any) -> None:
        """On rank 0."""
        record = replace(record, files=writer.finish(written))
        records.write_record(record, self._paths.checkpoint(record.step))
        if record.tag:
            set_tag(self._paths, record.tag, step=record.step)
        prune(self._paths, keep=self._config.checkpoint.keep)

    def _attempt(self, work: Callable[[], Any], needed: int) -> str | None:
        """Do something with the disk; in one line, why it failed."""
        try:
            work()
        except OSError as error:
            return f"rank {self._learner.rank}: {_describe(error, self._paths.checkpoints, needed)}"
        return None

    def _share(self, name: str, decide: Callable[[], str | None]) -> str | None:
        control = self._learner.control
        if control is None:
            return decide()
        found = control.share(f"checkpoint-{name}", decide, timeout_s=self._timeout_s + 2 * MARGIN_S)
        return None if found is None else str(found)

    @staticmethod
    def _name(save: _Save) -> str:
        return f"checkpoint-{save.record.step}"


def save(paths: RunDir, learner: Learner, config: RunConfig, *, step: int, tag: str | None,
         decisions: dict[str, Any]) -> None:
    """Commit the state before `step`, at once. Collective; when it returns the commit exists.

    Raises:
        RunFailed: it could not be written.
    """
    saver = Saver(paths, learner, config)
    saver.start(step, tag, decisions, background=False)
    outcome = saver.complete()
    if outcome.failure:
        raise save_failed(outcome)


def save_failed(outcome: Outcome) -> RunFailed:
    """The error of a save that failed."""
    return RunFailed(f"checkpoint of step {outcome.step} could not be written: {outcome.failure}",
                     rule="every learner writes its part; the former checkpoint is untouched",
                     fix="make room or move runs_dir, then resume; checkpoint.on_error=continue goes on instead")


def _make(directory: Path) -> None:
    """An empty directory for the state of a commit."""
    if directory.parent.exists():
        remove(directory.parent)
    directory.mkdir(parents=True)


def _describe(error: OSError, place: Path, needed: int) -> str:
    return disk_says(error, place) + (f", {needed:,} needed by this rank" if needed else "")
