"""What a careful reader of the run's figures would say, in words. Pure rules over what a run wrote.

Invariants:
- silent_when_healthy: a run whose figures are within the limits below gets no advice.
- unknown_is_silent: a figure that was not written gives no advice, and no error.
- one_a_rule: a rule speaks at most once, of the worst step, and says how many others there are.
- numbers_named: every advice names the value that gave rise to it.
- worst_first: problems come before warnings, warnings before remarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from siri_megatron.budget.signal import TRUNCATED, UNIFORM
from siri_megatron.report.read import RunData
from siri_megatron.report.tables import mean, phases_table

Level = Literal["problem", "warning", "remark"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "remark")

PHASE_TRUNCATED = 0.5
"""Mean share of a phase from which truncation, not reasoning, is what the rewards tell of."""
WASTED = 0.6
"""Share of groups without a gradient, over the last tenth, from which sampling is mostly wasted."""
MISMATCH = 0.05
"""Mean |learner - engine| log-probability, nats. bf16 engines show 0.01 to 0.02; beyond it the policies differ."""
LOW_ESS = 0.5
SPIKE = 20.0
"""Gradient norm over the run's median."""
COLLAPSED = 0.1
"""Entropy of the last tenth over that of the first."""
CLIPPED = 0.2
IDLE = 0.3
"""Share of a plain step that is neither generation nor training."""
LOW_FILL = 0.7
IMBALANCE = 1.3
SETTLED_STEPS = 100
"""Steps after which new micro-batch shapes should have become rare."""


@dataclass(frozen=True)
class Advice:
    level: Level
    title: str
    """What is seen, with its number."""
    text: str
    """What it means, and what to try."""


def advise(run: RunData) -> list[Advice]:
    """All advice on a run, worst first."""
    found = [advice for rule in RULES if (advice := rule(run))]
    return sorted(found, key=lambda advice: LEVELS.index(advice.level))


def outcome(run: RunData) -> Advice | None:
    """The run did not end well."""
    status = run.result.get("status")
    reason = str(run.result.get("reason", "")).strip()
    if status == "failed":
        return Advice("problem", f"the run failed after {len(run.records)} steps", reason)
    if status == "interrupted":
        return Advice("remark", f"the run was interrupted after {len(run.records)} steps",
                      f"{reason}. Go on with siri train {run.root}/config.yaml --resume")
    return None


def truncation(run: RunData) -> Advice | None:
    """Caps so short that nearly no answer ends."""
    cut = [record for record in run.records if _of(record, "truncated") >= TRUNCATED]
    if cut:
        worst = max(cut, key=lambda record: record["truncated"])
        return Advice("problem", f"{worst['truncated']:.0%} truncated at step {worst['step']}: cap too short"
                      + _others(cut), f"With a cap of {_cap(worst)} tokens nearly no answer ends, so nearly no reward "
                      "tells answers apart. Raise budget.l_min, or shorten compression.")
    phases = [phase for phase in phases_table(run.records) if (phase["truncated"] or 0) >= PHASE_TRUNCATED]
    if not phases:
        return None
    worst = max(phases, key=lambda phase: phase["truncated"])
    return Advice("warning", f"{worst['truncated']:.0%} truncated on average in {worst['name']}",
                  "Half of the answers or more are judged by where they were cut. A higher budget.l_min would keep "
                  "hard problems alive.")


def no_signal(run: RunData) -> Advice | None:
    """Steps in which no group teaches anything."""
    flat = [record for record in run.records if _of(record, "unfilled", _of(record, "uniform_groups")) >= UNIFORM
            and _of(record, "truncated") < TRUNCATED]
    if not flat:
        return None
    worst = max(flat, key=lambda record: _of(record, "uniform_groups"))
    wrong, right, cut = (mean(_of(record, key) for record in flat) or 0.0
                         for key in ("all_wrong_groups", "all_right_groups", "truncated"))
    middling = "Take problems of middling difficulty, or raise rollout.samples_per_prompt."
    if right > wrong:
        why = f"Most are all right: the problems have become too easy. {middling}"
    elif cut >= PHASE_TRUNCATED:
        why = (f"Most are all wrong, as {cut:.0%} of the answers were cut: the cap is too short there. Raise "
               "budget.l_min, or shorten compression.")
    else:
        why = f"Most are all wrong: the problems are too hard, or the verifier does not see the answers. {middling}"
    return Advice("problem" if len(flat) > len(run.records) / 10 and wrong >= right else "warning",
                  f"{_of(worst, 'uniform_groups'):.0%} of the groups equal at step {worst['step']}: no signal"
                  + _others(flat), f"A group whose answers all have one reward gives no gradient. {why}")


def short(run: RunData) -> Advice | None:
    """Dynamic sampling that does not find enough to train on."""
    found = [record for record in run.records if 0 < _of(record, "unfilled") < UNIFORM]
    if not found:
        return None
    worst = max(found, key=lambda record: record["unfilled"])
    return Advice("warning", f"{worst['unfilled']:.0%} of the groups missing at step {worst['step']}" + _others(found),
                  "Dynamic sampling did not find as many groups with a signal as a step trains on: raise "
                  "rollout.max_refill, or take problems of middling difficulty.")


def wasted(run: RunData) -> Advice | None:
    """Sampling that mostly yields nothing to learn from."""
    share, wrong, right = (mean(record.get(key) for record in last_tenth(run.records))
                           for key in ("uniform_groups", "all_wrong_groups", "all_right_groups"))
    if share is None or not WASTED <= share < UNIFORM:
        return None
    return Advice("remark", f"{share:.0%} of the groups gave no gradient in the last tenth of the run",
                  "Their answers were all right or all wrong, so most of the sampling taught nothing: "
                  f"{'easier' if (wrong or 0) > (right or 0) else 'harder'} problems would use it better.")


def verdicts(run: RunData) -> Advice | None:
    """Samples that the verifier could not judge."""
    limit = run.setting("reward.max_failed", 0.05)
    failed = [record for record in run.records if _of(record, "failed_share") > limit]
    if not failed:
        return None
    worst = max(failed, key=lambda record: record["failed_share"])
    return Advice("problem", f"no verdict on {worst['failed_share']:.0%} of the samples at step {worst['step']}"
                  + _others(failed), "The verifier timed out, crashed or ran out of memory. These samples are left "
                  "out, never scored as wrong; logs/collector.log has the first failure of each kind.")


def mismatch(run: RunData) -> Advice | None:
    """Engines that sample from another policy than the learner computes."""
    far = [record for record in run.records if _of(record, "mismatch_mean_abs") > MISMATCH
           and not _of(record, "staleness_mean")]  # with a lag the weights differ, and the policies with them
    if far:
        worst = max(far, key=lambda record: record["mismatch_mean_abs"])
        return Advice("problem", f"mismatch of {worst['mismatch_mean_abs']:.3f} nats a token at step {worst['step']}"
                      + _others(far), "Learner and engines disagree on the probability of the same tokens under the "
                      "same weights: check precision, RoPE settings and the weight push, or set algorithm.correction.")
    thin = [record for record in run.records if _of(record, "ess", 1.0) < LOW_ESS]
    if not thin:
        return None
    worst = min(thin, key=lambda record: record["ess"])
    return Advice("warning", f"effective sample size {worst['ess']:.0%} at step {worst['step']}" + _others(thin),
                  "Few tokens carry most of the weight between sampling and training policy: lower the lag or the "
                  "learning rate, or set algorithm.correction.")


def gradients(run: RunData) -> Advice | None:
    """Gradients that are no numbers, or that jump."""
    trained = [record for record in run.records if _of(record, "optimizer_steps") > 0 and "grad_norm" in record]
    lost = [record for record in trained if record["grad_norm"] is None]
    if lost:
        return Advice("problem", f"no finite gradient at step {lost[0]['step']}" + _others(lost),
                      "Loss or gradient overflowed. Lower optimizer.lr, or look at the mismatch and at the step's "
                      "samples.")
    norms = [record["grad_norm"] for record in trained]
    usual = median(norms) if norms else 0.0
    jumps = [record for record in trained if usual > 0 and record["grad_norm"] > SPIKE * usual]
    if not jumps:
        return None
    worst = max(jumps, key=lambda record: record["grad_norm"])
    return Advice("warning", f"gradient norm {worst['grad_norm']:.3g} at step {worst['step']}, {usual:.3g} usually"
                  + _others(jumps), "Clipping (optimizer.clip_grad) bounds the update; if it recurs, lower "
                  "optimizer.lr.")


def entropy(run: RunData) -> Advice | None:
    """A policy that has stopped exploring."""
    if len(run.records) < 20:
        return None
    first, last = (mean(record.get("entropy") for record in part(run.records)) for part in (first_tenth, last_tenth))
    if not first or last is None or last >= COLLAPSED * first:
        return None
    return Advice("remark", f"entropy fell from {first:.3g} to {last:.3g} nats a token",
                  "The policy has become nearly certain; it explores little. On a solved task that is the end of "
                  "learning, on a hard one it is too early: see algorithm.entropy_coef.")


def clipping(run: RunData) -> Advice | None:
    """Updates that mostly hit the clip range."""
    clipped = [record for record in run.records if _of(record, "clip_fraction") > CLIPPED]
    if len(clipped) <= len(run.records) / 20:
        return None
    worst = max(clipped, key=lambda record: record["clip_fraction"])
    return Advice("warning", f"{worst['clip_fraction']:.0%} of the tokens clipped at step {worst['step']}"
                  + _others(clipped), "Updates are larger than the clip range allows: fewer algorithm.mini_batches or "
                  "a lower optimizer.lr.")


def engines(run: RunData) -> Advice | None:
    """Engines that were lost."""
    lost = [event for event in run.events if event["kind"] == "engine" and event.get("after") == "dead"]
    if not lost:
        return None
    return Advice("warning", f"engines were lost {len(lost)} times", f"First: {lost[0].get('message', '')}. The run "
                  "went on without them; their logs are in logs/.")


def repeated(run: RunData) -> Advice | None:
    """Pushes and commits that did not succeed at once."""
    for kind, what in (("commit_failed", "checkpoints could not be written"), ("push_repeated", "weight pushes were "
                                                                                               "repeated")):
        if found := [event for event in run.events if event["kind"] == kind]:
            return Advice("warning", f"{len(found)} {what}", f"Last: {found[-1].get('message', '')}")
    return None


def idle(run: RunData) -> Advice | None:
    """Steps that spend their time on neither generation nor training."""
    plain = ("verification", "planning", "push", "other")
    spent = {name: sum(record.get(f"{name}_s") or 0 for record in run.records)
             for name in (*plain, "generation", "training")}
    total = sum(spent.values())
    share = sum(spent[name] for name in plain) / total if total else 0.0
    if share < IDLE:
        return None
    worst = max(plain, key=lambda name: spent[name])
    return Advice("warning", f"{share:.0%} of the steps' time was neither generation nor training",
                  f"Most of it is {worst} ({spent[worst]:.0f} s of {total:.0f} s).")


def batches(run: RunData) -> Advice | None:
    """Micro-batches with much padding, ranks with unequal work, shapes without end."""
    last = last_tenth(run.records)
    fill, imbalance = (mean(record.get(key) for record in last) for key in ("fill", "imbalance"))
    if fill is not None and fill < LOW_FILL:
        return Advice("warning", f"{1 - fill:.0%} of what the learner computes is padding",
                      "More batching.buckets or batching.mode=packed waste less.")
    if imbalance is not None and imbalance > IMBALANCE:
        return Advice("warning", f"the heaviest rank has {imbalance:.2f} times the mean work",
                      "More micro-batches a step (a smaller batching.tokens_per_micro_batch) can be dealt more evenly.")
    late = [record for record in run.records[SETTLED_STEPS:] if _of(record, "new_shapes") > 0]
    if run.setting("batching.mode") != "bucketed" or not late:
        return None
    return Advice("remark", f"{len(late)} steps after step {SETTLED_STEPS} ran micro-batch shapes that were new",
                  "On a GPU each new shape costs a warm-up; fewer batching.buckets make fewer shapes.")


def progress(run: RunData) -> Advice | None:
    """A last checkpoint that is worse than the start, or tiers that were lost."""
    if len(run.evaluations) < 2:
        return None
    first, last = run.evaluations[0], run.evaluations[-1]
    if _below(last, first):
        return Advice("problem", f"accuracy fell from {first['accuracy']:.1%} ({first['tag']}) to "
                      f"{last['accuracy']:.1%} ({last['tag']})", "The 95% intervals do not overlap. See truncation, "
                      "the gradients and the mismatch.")
    lost = [tier for tier, at in last.get("tiers", {}).items() if tier in first.get("tiers", {})
            and _below(at, first["tiers"][tier])]
    if not lost:
        return None
    return Advice("warning", f"{len(lost)} tiers were lost: {', '.join(lost[:5])}",
                  f"Their accuracy at {last['tag']} is below that at {first['tag']}, intervals apart. Under a harsh "
                  "cap hard problems stop being rewarded; a higher budget.l_min or budget.schedule=closed keeps them.")


def _below(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    high, low = one.get("accuracy_ci"), other.get("accuracy_ci")
    return bool(high and low and high[1] < low[0])


def first_tenth(records: Sequence[Any]) -> Sequence[Any]:
    return records[:max(1, len(records) // 10)]


def last_tenth(records: Sequence[Any]) -> Sequence[Any]:
    return records[-max(1, len(records) // 10):]


def _of(record: Mapping[str, Any], key: str, unknown: float = 0.0) -> float:
    value = record.get(key)
    return unknown if value is None else float(value)


def _cap(record: Mapping[str, Any]) -> str:
    return "?" if record.get("cap") is None else f"{record['cap']:.0f}"


def _others(records: Sequence[Any]) -> str:
    more = len(records) - 1
    return f" (and {more} more step{'s' if more > 1 else ''})" if more else ""


RULES: tuple[Callable[[RunData], Advice | None], ...] = (
    outcome, truncation, no_signal, short, wasted, verdicts, mismatch, gradients, entropy, clipping, engines, repeated,
    idle, batches, progress)
