"""The helper that runs functions on ranks: failures are told whole, and no process is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import Rank, RankFailed, Ranks

from siri_megatron.config import LearnerConfig
from siri_megatron.learner import groups


def identify(rank: Rank, text: str) -> tuple[int, int, str, int]:
    return rank.rank, rank.world, text, os.getpid()


def fail_on_one(rank: Rank) -> None:
    if rank.rank == 1:
        raise ValueError("only on rank 1")
    time.sleep(30)


def die_on_one(rank: Rank) -> None:
    if rank.rank == 1:
        os._exit(3)


def hang(rank: Rank) -> None:
    time.sleep(30)


def join_groups(rank: Rank) -> None:
    layout = LearnerConfig(tp=2)
    with rank.control(layout) as control:
        groups.start_groups(layout, control, seed=1)
        kept: list[object] = list(dist.distributed_c10d._world.pg_map)
        kept.append(kept)  # as a learner's parts know each other
        groups.stop_groups()


def threads(_: Rank) -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_threads_of_a_learner_that_is_gone_are_gone() -> None:
    """Each of its process groups has three, which never rest: a pool that had made thirty learners barely moved."""
    with Ranks(2) as ranks:
        ranks.run(join_groups)
        before = ranks.run(threads)
        for _ in range(3):
            ranks.run(join_groups)
        after = ranks.run(threads)
    assert all(later - earlier < 15 for earlier, later in zip(before, after, strict=True)), (before, after)


def test_results_come_in_order_from_the_same_processes() -> None:
    with Ranks(2) as ranks:
        first, second = (ranks.run(identify, text) for text in ("a", "b"))
    assert [answer[:3] for answer in first] == [(0, 2, "a"), (1, 2, "a")]
    assert [answer[3] for answer in first] == [answer[3] for answer in second]


@pytest.mark.parametrize(("function", "says"), [
    (fail_on_one, "on rank 1: Traceback.*only on rank 1"), (die_on_one, "on rank 1: the process died"),
    (hang, "on rank 0: no answer in time")])
def test_a_failure_is_told_and_leaves_nobody(function: object, says: str) -> None:
    with Ranks(2) as ranks:
        processes = [answer[3] for answer in ranks.run(identify, "")]
        with pytest.raises(RankFailed, match=f"(?s){says}"):
            ranks.run(function, timeout_s=3.0)  # type: ignore[arg-type]
    assert not [process for process in processes if Path(f"/proc/{process}").exists()]
