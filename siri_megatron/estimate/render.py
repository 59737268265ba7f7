"""An estimate as tables for people. Columns headed by ~ are modelled: no machine has measured them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from siri_megatron.estimate.notes import notes
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.estimate.run import RunEstimate, gpu_hours
from siri_megatron.estimate.search import Split
from siri_megatron.estimate.setup import Setup

LEFT = ("phase", "slower\nside", "")
SIDES = {"generation": "engines", "training": "learners"}


def report(run: RunEstimate, *, fix: Sequence[str] | None, split: Split | None) -> Group:
    """Everything about one run.

    Args:
        fix: overrides that make it fit; None: nothing found, or nothing to mend.
        split: a faster way to share out the GPUs, if there is one.
    """
    parts: list[RenderableType] = [_line(title(run)), *_warnings(run, fix), by_cap(run), by_phase(run),
                                   _line(totals(run))]
    if split:
        parts.append(_line(f"faster split of these GPUs: {' '.join(split.overrides)} "
                           f"(~{split.step_s:,.0f} s a step at cap {split.cap:,})"))
    return Group(*parts, *(_line(f"  {note}") for note in notes(run)))


def title(run: RunEstimate) -> str:
    setup = run.setup
    return (f"{setup.config.name}: {billions(model_parameters(setup.arch))} parameters, {setup.config.model.dtype}, on "
            f"{machine(setup)}\nlearners {layout(setup)}; engines {engines(setup)}")


def by_cap(run: RunEstimate) -> Table:
    """What a step is like as the cap moves."""
    time, memory = marks(run.setup)
    bucketed = ["buckets"] if run.setup.config.batching.mode == "bucketed" else []
    table = _table("A step, by cap", "cap", "tokens\na sample", "trun-\ncated", "capacity", "micro-\nbatches",
                   "tokens\neach", *bucketed, "fill", f"{memory}learner\nGB", f"{time}gener-\nation",
                   f"{time}train-\ning", "bubble", f"{time}step", "slower\nside")
    for point in run.points:
        step, room = point.step, point.room
        widths = ["/".join(map(str, step.widths)) for _ in bucketed]
        table.add_row(f"{step.cap:,}", f"{step.mean_tokens:,.0f}", f"{step.truncated:.0%}", f"{step.capacity:,.0f}",
                      f"{step.micro_batches:,.0f}", f"{step.micro_batch_tokens:,.0f}", *widths, f"{step.fill:.1%}",
                      gigabytes(room.learner.on_device), span(step.generation_s), span(step.training_s),
                      f"{step.bubble:.1%}", span(step.step_s), SIDES[step.bottleneck])
    return table


def by_phase(run: RunEstimate) -> Table:
    """What the phases cost; `other`: push, overhead, commits, export, evaluation."""
    time, memory = marks(run.setup)
    table = _table("Phases", "phase", "steps", "cap", "tokens", "micro-\nbatches", f"{memory}learner\nGB",
                   f"{time}gener-\nation", f"{time}train-\ning", f"{time}other", "bubble", f"{time}total",
                   f"{time}{hours_name(run.setup)}".replace("-", "-\n"), "slower\nside")
    for phase in run.phases:
        low, high = (round(count) for count in phase.micro_batches)
        other = phase.seconds - phase.generation_s - phase.verification_s - phase.training_s
        if run.setup.config.rollout.lag:  # the two sides overlap
            other = phase.seconds - phase.step_s + phase.push_s + phase.overhead_s
        table.add_row(phase.tag, f"{phase.steps}", f"{phase.first_cap:,}→{phase.last_cap:,}", billions(phase.tokens),
                      f"{low}" if low == high else f"{low}–{high}", gigabytes(phase.learner_bytes),
                      span(phase.generation_s + phase.verification_s), span(phase.training_s), span(other),
                      f"{phase.bubble:.1%}", span(phase.seconds), rounded(phase.gpu_hours),
                      " → ".join(SIDES[side] for side in phase.bottleneck.split(", then ")))
    return table


def totals(run: RunEstimate) -> str:
    setup, time = run.setup, marks(run.setup)[0]
    cycles = {f"{time}{span(spent)}, {time}{rounded(gpu_hours(setup, spent))} {hours_name(setup)}": cycle + 1
              for cycle, spent in run.cycles.items()}
    per_cycle = ("each cycle " + next(iter(cycles)) if len(cycles) == 1 else
                 "; ".join(f"cycle {cycle} {cost}" for cost, cycle in cycles.items()))
    wait = ", ".join(f"{side} {share:.0%}" for side, share in run.waiting.items())
    turns = (f"the slower side changes at cap {', '.join(f'{cap:,}' for cap in run.turns_at)}" if run.turns_at
             else f"{run.points[-1].step.bottleneck} is the slower side at every cap")
    return (f"run {time}{span(run.seconds)}, {time}{rounded(run.gpu_hours)} {hours_name(setup)}; {per_cycle}\n"
            f"waiting for the other side, share of the steps: {wait}; {turns}")


def compare(runs: Sequence[tuple[str, RunEstimate]]) -> Table:
    """Several layouts side by side."""
    first = runs[0][1]
    table = _table("Layouts", "", *(name.replace(",", "\n") for name, _ in runs))
    for name, cell in _compared(first):
        table.add_row(name, *(cell(run) for _, run in runs))
    return table


def _compared(first: RunEstimate) -> Iterator[tuple[str, Callable[[RunEstimate], str]]]:
    """The rows of the comparison; names and units are those of the first run."""
    time, memory = marks(first.setup)
    paid = hours_name(first.setup)
    for key in ("tp", "pp", "dp", "cp", "vpp", "recompute"):
        yield f"learner.{key}", partial(_layout_key, key)
    yield "engines x GPUs", lambda run: f"{run.setup.config.engines.count} x {run.setup.engine_gpus}"
    yield "fits", lambda run: "no" if run.misfits else "yes"
    yield f"{memory}learner GB, at most", lambda run: gigabytes(run.points[-1].room.learner.on_device)
    yield "KV tokens an engine", lambda run: f"{run.points[-1].room.kv_tokens:,}"
    for at in (0, -1):
        cap = f"cap {first.points[at].step.cap:,}"
        yield f"micro-batches, {cap}", partial(_step_value, at, "micro_batches", "{:,.0f}".format)
        yield f"bubble, {cap}", partial(_step_value, at, "bubble", "{:.1%}".format)
        for part in ("generation", "training", "step"):
            yield f"{time}{part}, {cap}", partial(_step_value, at, f"{part}_s", span)
    for side in ("learners", "engines"):
        yield f"{side} wait", partial(_waiting, side)
    yield f"{time}first cycle", lambda run: span(run.cycles[0])
    yield f"{time}{paid}, first cycle", lambda run: rounded(gpu_hours(run.setup, run.cycles[0]))
    yield f"{time}{paid}, run", lambda run: rounded(run.gpu_hours)


def _layout_key(key: str, run: RunEstimate) -> str:
    return str(getattr(run.setup.config.learner, key))


def _step_value(at: int, name: str, show: Callable[[float], str], run: RunEstimate) -> str:
    return show(getattr(run.points[at].step, name))


def _waiting(side: str, run: RunEstimate) -> str:
    return f"{run.waiting[side]:.0%}"


def marks(setup: Setup) -> tuple[str, str]:
    """(mark of seconds, mark of memory): ~ where modelled."""
    return "~" if setup.machine.rates.origin == "modelled" else "", "~" if setup.spec == "te" else ""


def layout(setup: Setup) -> str:
    config = setup.config.learner
    sizes = " ".join(f"{name}{getattr(config, name)}" for name in ("tp", "pp", "dp", "cp", "vpp")
                     if getattr(config, name) > 1 or name in ("tp", "pp", "dp"))
    further = [name for name, on in (("sequence parallel", config.sequence_parallel),
                                     (f"recompute {config.recompute}", config.recompute != "none"),
                                     ("distributed optimizer", config.distributed_optimizer)) if on]
    return f"{setup.learners}: {sizes}" + (f" ({', '.join(further)})" if further else "")


def engines(setup: Setup) -> str:
    each = f" x {setup.engine_gpus} GPUs" if setup.engine_gpus > 1 else ""
    return f"{setup.config.engines.count}{each}, {setup.config.engines.max_num_seqs} sequences each"


def machine(setup: Setup) -> str:
    here = setup.machine
    if here.gpu is None:
        return f"{here.rates.machine}, {here.cores} cores"
    return f"{setup.devices} {here.gpu.name.upper()}, {here.gpus_per_node} a node"


def hours_name(setup: Setup) -> str:
    return "GPU-hours" if setup.machine.gpu else "machine-hours"


def billions(count: float) -> str:
    """1.78e9 -> `1.78 B`."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:.0f}"


def span(seconds: float) -> str:
    """`4.21 s`, `283 s`, `18.5 min`, `24.0 h`."""
    if seconds < 600:
        return f"{seconds:#.3g} s".replace(". ", " ")
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def rounded(value: float) -> str:
    """At least three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"


def _warnings(run: RunEstimate, fix: Sequence[str] | None) -> list[Text]:
    if not run.misfits:
        return []
    lines = [_line(f"does not fit: {misfit}", "bold red") for misfit in run.misfits]
    nothing = "no layout of these GPUs fits: give more of them (--nodes)"
    return [*lines, _line(f"nearest that fits: {' '.join(fix)}" if fix else nothing, "bold")]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style)


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in LEFT else "right", no_wrap=True)
    return table
