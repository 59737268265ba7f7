"""Which job of a study is next. Pure.

Invariants (tests/study/test_schedule.py has them by these names):
- each_once: every warm start and every run of the plan is given out exactly once.
- warm_first: a run is given out after its warm start is done.
- seeds_together: the runs of a seed come one after another, so that what one seed's arms are compared by was made at
  about one time; which arm is first goes round from seed to seed.
- warm_engines_stay: a lane keeps to the warm start of its engine as long as that has runs left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from siri_megatron.study.plan import StudyPlan


@dataclass(frozen=True)
class Job:
    """A warm start (no arm), or a run."""

    seed: int
    warm: int
    """Seed of the warm start that the run has, or that this job makes; 0: one that is there."""
    arm: str = ""

    @property
    def name(self) -> str:
        """Its directory."""
        return f"{self.arm}-{self.seed}" if self.arm else f"warm-{self.seed}"


def jobs(plan: StudyPlan) -> list[Job]:
    """All jobs of a plan, in the order in which one lane would do them."""
    found = dict.fromkeys(job for index, seed in enumerate(plan.seeds) for job in _of_seed(plan, index, seed))
    return list(found)


def _of_seed(plan: StudyPlan, index: int, seed: int) -> list[Job]:
    warm, arms = plan.warm_of(seed), list(plan.arms)
    first = index % len(arms)
    runs = [Job(seed, warm, arm) for arm in arms[first:] + arms[:first]]
    return [Job(warm, warm), *runs] if warm else runs


def next_job(all_jobs: Sequence[Job], done: Collection[Job], taken: Collection[Job], held: int | None) -> Job | None:
    """The next job for a lane; None if none can be started now.

    Args:
        done: finished jobs.
        taken: given out, to any lane, and not finished.
        held: warm start of the lane's engine; None: it has none.
    """
    ready = [job for job in all_jobs if job not in done and job not in taken and _started_by(job, done)]
    return next((job for job in ready if job.arm and job.warm == held), ready[0] if ready else None)


def _started_by(job: Job, done: Collection[Job]) -> bool:
    return not job.arm or not job.warm or Job(job.warm, job.warm) in done
