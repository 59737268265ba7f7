"""The commands of `siri`: read the config, refuse what cannot work, plan, supervise, say how it went."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from siri_megatron import config as configs
from siri_megatron.config import RunConfig, Section
from siri_megatron.errors import ConfigError
from siri_megatron.files import on_disk, write_json
from siri_megatron.launch import agent, cluster, describe, outcome, preflight
from siri_megatron.launch.display import Display
from siri_megatron.launch.evaluate import evaluation_config
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.progress import check_commits, last_commit, last_status
from siri_megatron.launch.spec import ProcessPlan, Task, plan_run, plan_sft
from siri_megatron.launch.stop import clear_notice
from siri_megatron.launch.supervisor import Supervisor
from siri_megatron.launch.verdict import Verdict
from siri_megatron.observe.environment import environment
from siri_megatron.observe.progress import Progress
from siri_megatron.observe.progress_state import ProgressState
from siri_megatron.observe.render import say
from siri_megatron.paths import RunDir
from siri_megatron.sft_config import load_sft


def train(args: Namespace, console: Console) -> int:
    """`siri train`: also its replay and rollout-only modes."""
    config = configs.load(args.config, args.overrides)
    task: Task = "replay" if args.replay else "rollout-only" if args.rollout_only else "train"
    replay = _run_root(args.replay, config.runs_dir) if args.replay else None
    place = cluster.place_of(args, config)
    if place and place.node:
        return agent.serve(config, place.node, place.head)
    with cluster.refusal_recorded(RunDir(config.run_dir)) if args.resume and not args.dry_run else nullcontext():
        return _train(config, task, args, console, replay, place)


def _train(config: RunConfig, task: Task, args: Namespace, console: Console, replay: Path | None,
           place: cluster.Place | None) -> int:
    paths = RunDir(config.run_dir)
    preflight.check_run_dir(paths, shared=args.resume or args.fresh or args.dry_run)
    checked = preflight.check_run(config, task, replay=replay, resumed=args.resume)
    config = preflight.replace_fingerprint(config, checked.model, checked.training)
    if args.resume:
        preflight.check_same_run(config, paths)
        if not args.dry_run and _already_complete(paths, console):
            return 0
    if place:
        verdict, plan = cluster.lead(config, task, place, _display(config, console), replay, checked.given)
        return _told(verdict, plan, config, console)
    return _run(config, task, console, checked, replay=replay, dry_run=args.dry_run, fresh=args.fresh)


def sft(args: Namespace, console: Console) -> int:
    """`siri sft`: supervised warm start with the same learners."""
    config = load_sft(args.config, args.overrides)
    preflight.check_sft(config)
    plan = plan_sft(config, preflight.this_machine())
    preflight.check_run_dir(plan.run_dir, shared=args.fresh or args.dry_run)
    if args.dry_run:
        console.out(configs.as_yaml(config), describe.describe_plan(plan), sep="\n", highlight=False)
        return 0
    display = outcome.PlainDisplay(console)
    verdict = _supervise(plan, config, display, fresh=args.fresh)
    outcome.print_verdict(verdict, plan, console)
    if verdict.status == "success":
        say(console, f"model in {config.output}")
    return verdict.exit_code


def evaluate(args: Namespace, console: Console) -> int:
    """`siri eval`: accuracy, tokens and J(B) of a model directory or of a run's newest export."""
    config, tag = evaluation_config(args)
    paths = RunDir(config.run_dir)
    if args.resume and (paths.evaluations / f"{tag}.json").exists():
        outcome.print_evaluation(paths, console)
        say(console, f"{paths.root} is complete: nothing to resume")
        return 0
    preflight.check_run_dir(paths, shared=args.resume)
    checked = preflight.check_run(config, "eval")
    config = preflight.replace_fingerprint(config, checked.model)
    return _run(config, "eval", console, checked, driver=("--tag", tag))


def _run(config: RunConfig, task: Task, console: Console, checked: preflight.Checked, *, replay: Path | None = None,
         dry_run: bool = False, fresh: bool = False, driver: Sequence[str] = ()) -> int:
    prompts = describe.describe_prompts(config, checked.training, checked.suites)
    with _ports(config, task) as held:
        plan = plan_run(config, task, preflight.this_machine(), ports=held.ports, given=checked.given,
                        replay=replay, driver=driver)
        if dry_run:
            _print_dry_run(config, plan, prompts, console)
            return 0
        console.out(prompts, highlight=False)
        verdict = _supervise(plan, config, _display(config, console), fresh=fresh)
    return _told(verdict, plan, config, console)


def _told(verdict: Verdict, plan: ProcessPlan, config: RunConfig, console: Console) -> int:
    """Say how a run went, and draw it; returns the exit status."""
    outcome.print_outcome(verdict, plan, config, console)
    if plan.task != "eval" and verdict.status != "interrupted":  # who interrupts a run wants it to end
        outcome.draw_report(plan.run_dir, console)
    return verdict.exit_code


def _ports(config: RunConfig, task: Task) -> PortHolder:
    engines = config.engines
    return PortHolder(engines.host, engines.base_port, 0 if task == "replay" or engines.urls else engines.count)


def _supervise(plan: ProcessPlan, config: Section, display: Display, *, fresh: bool) -> Verdict:
    """Lock the run directory, write the resolved config into it, and run the plan."""
    paths = plan.run_dir
    try:
        if fresh and paths.root.is_dir():
            _put_aside(paths)
        with on_disk(paths.root):
            paths.root.mkdir(parents=True, exist_ok=True)
        with RunLock(paths) as lock:
            check_commits(paths)
            clear_notice(paths)
            with on_disk(paths.root):
                configs.save(config, paths.config)
                write_json(paths.environment, environment())
            return Supervisor(plan, display, lock).run()
    finally:
        display.close()


def _put_aside(paths: RunDir) -> None:
    """Keep the earlier run as NAME.previous; the one before is removed."""
    with RunLock(paths):
        previous = paths.root.with_name(f"{paths.root.name}.previous")
        if previous.exists():
            shutil.rmtree(previous)
        paths.root.rename(previous)


def _already_complete(paths: RunDir, console: Console) -> bool:
    if last_status(paths) != "success":
        if (commit := last_commit(paths)) is None:
            say(console, f"{paths.root}: no commit yet, starting from step 0")
        else:
            say(console, f"{paths.root}: resuming before step {commit}")
        return False
    say(console, f"{paths.root} is complete: nothing to resume. A longer schedule is another run: start it from an "
                 f"export (model.path={paths.export}/TAG name=OTHER)")
    return True


def _run_root(name: Path, runs_dir: Path) -> Path:
    """RUN may be a directory or the name of a run in runs_dir."""
    for root in (name, runs_dir / name):
        if root.is_dir():
            return root
    there = ", ".join(sorted(path.name for path in runs_dir.glob("*/"))) or "none"
    raise ConfigError(f"run {name} is neither a directory nor in {runs_dir}", rule="--replay RUN names an earlier run",
                      fix=f"give the directory of a run, or one of those in {runs_dir}: {there}")


def _display(config: RunConfig, console: Console) -> Progress:
    budget = config.budget
    cycles = None if budget.schedule == "closed" else budget.cycles
    return Progress(ProgressState(name=config.name, steps=budget.steps, cycles=cycles, l_min=budget.l_min,
                                  l_max=budget.l_max), console)


def _print_dry_run(config: RunConfig, plan: ProcessPlan, prompts: str, console: Console) -> None:
    parts = ("# config", configs.as_yaml(config), "# processes", describe.describe_plan(plan),
             "# prompts", prompts, "", "# budget", describe.describe_budget(config),
             "# method", describe.describe_method(config))
    console.out("\n".join(parts), highlight=False)
