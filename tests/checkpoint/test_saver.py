"""Saves on real ranks: in the background, failing, hanging, killed at every point. The former commit always stays."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learners import Weights, commit, restore, run_config, same, settings, stored, train, weights
from ranks import Rank, RankFailed, Ranks

from siri_megatron.checkpoint import megatron_state, saver, store
from siri_megatron.checkpoint.saver import Outcome, Saver
from siri_megatron.checkpoint.state_writer import StateWriter
from siri_megatron.config import RunConfig
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir

SHARDED = {"dp": 2, "distributed_optimizer": True, "overlap": True}


class Patched:
    """Puts a function in another's place for as long as it is entered."""

    def __init__(self, owner: Any, name: str, stand_in: Callable[..., Any]) -> None:
        self.owner, self.name, self.stand_in, self.original = owner, name, stand_in, getattr(owner, name)

    def __enter__(self) -> None:
        setattr(self.owner, self.name, self.stand_in)

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.original)


def in_background(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> list[Any]:
    """The same state saved at once (step 3, `at-once`) and in the background while two more steps are trained."""
    trained_on, write = threading.Event(), StateWriter.write

    def late(writer: StateWriter) -> Any:
        assert trained_on.wait(30)
        return write(writer)

    with rank.learner(given) as learner, Patched(StateWriter, "write", late):
        train(learner, range(3))
        trained_on.set()
        commit(learner, config, root / "at-once", 3)
        trained_on.clear()
        state = weights(learner)
        paths = RunDir(root / "later")
        own = Saver(paths, learner, config)
        own.start(3, None, {"version": 1}, background=True)
        train(learner, range(3, 5))
        early = (own.all_written(), len(store.commits(paths)))
        trained_on.set()
        deadline = time.monotonic() + 30
        while not (learner.control.share("done?", own.all_written) or time.monotonic() > deadline):
            own.all_written()  # a look between two steps: says whether this rank is done
            time.sleep(0.01)
        before = len(store.commits(paths))
        outcome = own.complete()
        return [early, before, outcome, len(store.commits(paths)), same(state, weights(learner))]


@pytest.mark.parametrize("layout", [{"tp": 2}, SHARDED])
def test_a_background_save_has_the_bits_of_one_at_once(ranks: Ranks, model_dir: Path, tmp_path: Path,
                                                       layout: dict[str, Any]) -> None:
    """Training goes on between snapshot and write; nothing is visible before `complete`."""
    for answer in ranks.run(in_background, settings(model_dir, layout), run_config(model_dir), tmp_path):
        assert answer[:2] == [(False, 0), 0]
        assert answer[2] == Outcome(3, None, None)
        assert not answer[4], "training changed nothing"
    assert len(store.commits(RunDir(tmp_path / "later"))) == 1
    once, later = (RunDir(tmp_path / name).checkpoint(3) / store.STATE for name in ("at-once", "later"))
    names = sorted(path.name for path in once.glob("*.distcp"))
    assert len(names) == 2
    assert [(later / name).read_bytes() for name in names] == [(once / name).read_bytes() for name in names]
    assert (later / "common.pt").read_bytes() == (once / "common.pt").read_bytes()
    assert same(stored(tmp_path / "later", 3), stored(tmp_path / "at-once", 3))


def without_a_copy(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> None:
    """Negative control: the background write reads the live tensors."""
    original = megatron_state.StateWriter.__init__

    def careless(writer: StateWriter, sharded: Any, directory: Path, *, copy: Any, checksums: bool) -> None:
        original(writer, sharded, directory, copy=lambda _: False, checksums=checksums)

    with Patched(StateWriter, "__init__", careless):
        in_background(rank, given, config, root)


def test_a_save_without_a_copy_would_be_noticed(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    ranks.run(without_a_copy, settings(model_dir, {"tp": 2}), run_config(model_dir), tmp_path)
    assert not same(stored(tmp_path / "later", 3), stored(tmp_path / "at-once", 3))


def outcomes(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path, fault: str, background: bool
             ) -> list[Outcome]:
    """A good commit (step 1), one that meets a fault on rank 1 (step 2), a good one (step 3)."""
    write = StateWriter.write

    def faulty(writer: StateWriter) -> Any:
        if rank.rank == 1 and "step-000002" in str(writer.directory):
            if fault == "full":
                raise OSError(28, "No space left on device")
            written = write(writer)
            (writer.directory / "__1_0.distcp").write_bytes(b"torn")  # the file system lied
            return written
        return write(writer)

    found = []
    with rank.learner(given) as learner, Patched(StateWriter, "write", faulty):
        own = Saver(RunDir(root), learner, config)
        for step in (1, 2, 3):
            own.start(step, None, {}, background=background)
            train(learner, range(step, step + 1))
            found.append(own.complete())
    return found


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("fault", ["full", "torn"])
def test_a_failure_on_one_rank_is_everybodys(ranks: Ranks, model_dir: Path, tmp_path: Path, fault: str,
                                             background: bool) -> None:
    """Nobody waits in a collective for the rank that failed; the save after it works."""
    one, other = ranks.run(outcomes, settings(model_dir, {"tp": 2}), run_config(model_dir), tmp_path, fault, background)
    assert one == other
    assert [outcome.failure is None for outcome in one] == [True, False, True]
    failure = one[1].failure or ""
    if fault == "full":
        assert "rank 1" in failure
        assert "No space left on device" in failure
        assert "bytes free" in failure
        assert "needed by this rank" in failure
    else:
        assert "__1_0.distcp has 4 of" in failure
    assert [record.step for record in store.commits(RunDir(tmp_path))] == [1, 3]
    assert not RunDir(tmp_path).checkpoint(2).exists()


def commits_on_a_disk(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path, steps: int
                      ) -> list[str | None]:
    with rank.learner(given) as learner:
        own = Saver(RunDir(root), learner, config)
        found = []
        for step in range(1, 1 + steps):
            own.start(step, None, {}, background=step % 2 == 0)
            found.append(own.complete().failure)
        return found


def test_a_full_disk(ranks: Ranks, model_dir: Path, disk: Callable[..., Path]) -> None:
    """A real one: the second commit does not fit, the first stays whole and is read."""
    root, given = disk("size=640k"), settings(model_dir, {"tp": 2})
    answers = ranks.run(commits_on_a_disk, given, run_config(model_dir), root, 2)
    assert answers[0] == answers[1]
    assert answers[0][0] is None
    assert "No space left on device" in (answers[0][1] or "")
    assert str(root) in (answers[0][1] or "")
    assert [path.name for path in RunDir(root).checkpoints.iterdir()] == ["step-000001"]
    assert same(*ranks.run(read, given, root, 1))


def read(rank: Rank, given: LearnerSettings, root: Path, step: int) -> Weights:
    with rank.learner(given) as learner:
        restore(learner, root, step)
        return weights(learner)


def test_a_read_only_directory(ranks: Ranks, model_dir: Path, disk: Callable[..., Path]) -> None:
    """Root may write anywhere but on a read-only file system."""
    root = disk("size=4m", "ro")
    for failures in ranks.run(commits_on_a_disk, settings(model_dir, {"tp": 2}), run_config(model_dir), root, 2):
        for failure in failures:
            assert "Read-only file system" in (failure or "")
            assert "rank 0" in (failure or "")


HANG_S = 100.0


def hanging(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> tuple[str, float]:
    """Rank 1's disk does not answer."""
    from siri_megatron.errors import RunFailed

    never = threading.Event()
    with rank.learner(given) as learner, Patched(saver, "MARGIN_S", 1.0):  # type: ignore[arg-type]
        own = Saver(RunDir(root), learner, config)
        with Patched(StateWriter, "write", lambda _: never.wait(HANG_S) if rank.rank else []):
            own.start(1, None, {}, background=True)
            start = time.monotonic()
            try:
                own.complete()
            except RunFailed as error:
                return str(error), time.monotonic() - start
            finally:
                never.set()
    return "", 0.0


def test_a_disk_that_does_not_answer_is_named(model_dir: Path, tmp_path: Path) -> None:
    with Ranks(2) as ranks:
        (zero, zero_s), (one, one_s) = ranks.run(hanging, settings(model_dir, {"tp": 2}),
                                                 run_config(model_dir, timeout_s=1.0), tmp_path)
    assert "rank 1 has not written" in one
    assert "timeout_s=1" in one
    assert "ranks [1] did not report" in zero
    assert max(zero_s, one_s) < HANG_S, "nobody waited for it"


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(writer: StateWriter) -> None:
    (writer.directory / "__1_0.distcp").write_bytes(b"half")
    die()


POINTS: dict[str, tuple[int, Any, str, Callable[..., Any]]] = {
    "planning": (1, saver, "plan_save", die),
    "writing": (1, StateWriter, "write", half_written),
    "gathering": (1, StateWriter, "gather", die),
    "finishing": (0, StateWriter, "finish", die),
    "recording": (0, saver.records, "write_record", die),
}


def killed(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path, point: str, background: bool) -> None:
    """SIGKILL of one rank at a point of the commit of step 9."""
    who, owner, name, stand_in = POINTS[point]
    with rank.learner(given) as learner:
        commit(learner, config, root, 3)
        own = Saver(RunDir(root), learner, config)
        with Patched(owner, name, stand_in if rank.rank == who else getattr(owner, name)):
            own.start(9, None, {}, background=background)
            own.complete()


@pytest.mark.parametrize(("point", "background"), [
    ("planning", True), ("writing", True), ("recording", True), pytest.param("writing", False, marks=pytest.mark.soak),
    pytest.param("gathering", True, marks=pytest.mark.soak), pytest.param("finishing", False, marks=pytest.mark.soak)])
def test_a_kill_at_any_point_leaves_the_former_commit(model_dir: Path, tmp_path: Path, point: str, background: bool
                                                      ) -> None:
    given, config, paths = settings(model_dir, {"tp": 2}), run_config(model_dir), RunDir(tmp_path)
    with Ranks(2) as ranks, pytest.raises(RankFailed, match="the process died") as failed:
        ranks.run(killed, given, config, tmp_path, point, background)
    if point in ("planning", "gathering"):  # the other rank was in a collective: it says in which
        assert "every rank takes part" in str(failed.value)
    assert paths.checkpoint(9).is_dir()
    latest = store.latest(paths)
    assert latest is not None
    assert latest.step == 3
    assert store.recover(paths) == ["removed half-written checkpoints/step-000009"]
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step-000003"]
    with Ranks(2) as ranks:
        assert same(*ranks.run(read, given, tmp_path, 3))


def killed_while_pruning(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> None:
    """Between a commit and the removal of the oldest: the new one counts already."""
    with rank.learner(given) as learner:
        for step in (1, 2):
            commit(learner, config, root, step)
        own = Saver(RunDir(root), learner, config)
        with Patched(store.shutil, "rmtree", die if rank.rank == 0 else store.shutil.rmtree):
            own.start(3, "iter1-compressed", {}, background=False)
            own.complete()


def test_a_kill_after_the_record_keeps_the_new_commit(model_dir: Path, tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    with Ranks(2) as ranks, pytest.raises(RankFailed):
        ranks.run(killed_while_pruning, settings(model_dir, {"tp": 2}), run_config(model_dir), tmp_path)
    paths.tags.unlink()  # as if the kill had come before the tag was noted
    assert store.recover(paths) == ["removed half-written checkpoints/step-000001"]
    assert [record.step for record in store.commits(paths)] == [2, 3]
    assert store.tags(paths) == {"iter1-compressed": {"step": 3}}


def busy(*_: object, **__: object) -> None:
    raise OSError(16, "Device or resource busy")


def commits_beside_a_busy_one(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> list[list[str]]:
    """Three commits, of which one is kept; at the second the first cannot be removed. What lies there after each."""
    found = []
    with rank.learner(given) as learner:
        for step in (1, 2, 3):
            with Patched(os, "rmdir", busy if step == 2 else os.rmdir):
                commit(learner, config, root, step)
            found.append([f"{record.step}" for record in store.commits(RunDir(root))])
            found.append(sorted(path.name for path in RunDir(root).checkpoints.iterdir()))
    return found


def test_removal_undoes_no_commit(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    """An old commit whose files cannot go (NFS keeps those that are open) is no reason to lose the new one."""
    given, config = settings(model_dir, {"tp": 2}), run_config(model_dir, keep=1)
    first, second, third = (f"step-00000{step}" for step in (1, 2, 3))
    assert ranks.run(commits_beside_a_busy_one, given, config, tmp_path)[0] == [
        ["1"], [first], ["2"], [first, second], ["3"], [third]]


def lost_while_loading(rank: Rank, given: LearnerSettings, root: Path) -> None:
    with rank.learner(given) as learner:
        if rank.rank:
            die()
        restore(learner, root, 1)


def commit_once(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> None:
    with rank.learner(given) as learner:
        commit(learner, config, root, 1)


def test_a_rank_lost_while_loading_is_noticed(model_dir: Path, tmp_path: Path) -> None:
    given = settings(model_dir, {"tp": 2})
    with Ranks(2) as ranks:
        ranks.run(commit_once, given, run_config(model_dir), tmp_path)
        with pytest.raises(RankFailed, match="rank 0, loading checkpoint"):
            ranks.run(lost_while_loading, given, tmp_path)
