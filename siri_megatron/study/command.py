"""`siri study PLAN...`: run what is missing, gather it, and write what it says."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from siri_megatron.study.collect import collect
from siri_megatron.study.plan import StudyPlan, fingerprint, load_plan
from siri_megatron.study.reading import write_results
from siri_megatron.study.runner import run_study
from siri_megatron.study.schedule import jobs

PLACE = Path("runs/study")


def study(args: Namespace, console: Console) -> int:
    """The command.

    Raises:
        ConfigError: a plan is wrong, or its directory holds runs of another.
        RunFailed: a run failed twice.
        DataError: with `--collect`: a run is missing.
    """
    plans = [load_plan(path) for path in args.plans]
    for plan in plans:
        if args.dry_run:
            console.print(_described(plan), highlight=False, markup=False)
        else:
            _study(plan, args, console)
    return 0


def _study(plan: StudyPlan, args: Namespace, console: Console) -> None:
    place, cores = PLACE / plan.name, sorted(os.sched_getaffinity(0))[: args.lanes]
    if not args.collect:
        run_study(plan, place, cores, lambda text: console.print(text, highlight=False, markup=False))
    out = (args.out or PLACE) / plan.name
    collect(plan, place, out)
    written = write_results(out, f"Study {plan.name}: {len(plan.arms)} arms x {len(plan.seeds)} seeds", plan.kind,
                            f"Plan `{fingerprint(plan)}` ({plan.kind}).")
    console.print(f"results  {written[0]}", highlight=False, markup=False)


def _described(plan: StudyPlan) -> str:
    lines = [f"  {job.name}  from warm start {job.warm or plan.warm_starts.path}" for job in jobs(plan)]
    return "\n".join([f"study {plan.name} ({plan.kind}), plan {fingerprint(plan)}: "
                      f"{len(plan.arms)} arms x {len(plan.seeds)} seeds", *lines])
