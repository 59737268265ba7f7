"""`metrics.jsonl`: one record a step, every key documented here.

Invariants:
- documented: a key without an entry in METRICS, or a value of another kind, is refused before anything is written.
- one_record_a_step: steps rise strictly, also across a resume.
- cut_is_exact: `truncate_after(path, step)` keeps exactly the whole records up to the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from siri_megatron.files import write_text
from siri_megatron.observe import jsonl

Kind = Literal["number", "text", "flag", "curve"]


@dataclass(frozen=True)
class Metric:
    """What a metric key means."""

    section: str
    """Group in TensorBoard and in the documentation."""
    unit: str
    doc: str
    kind: Kind = "number"
    """`curve`: a map from budget (or width) to number. A number or a flag may be null: not known in this step."""


METRICS: dict[str, Metric] = {
    "step": Metric("budget", "", "training step that consumed the rollouts, from 0"),
    "phase": Metric("budget", "", "compression or expansion", "text"),
    "cycle": Metric("budget", "", "cycle of the schedule, from 0"),
    "cap": Metric("budget", "tokens", "response budget of the step"),
    "mean_cap": Metric("budget", "tokens", "mean cap of the samples; below `cap` where prompts have caps of their own"),
    "lowered_caps": Metric("budget", "share", "samples whose prompt has a cap below the step's"),
    "lowered_groups": Metric("budget", "groups", "lag: groups in flight that got the smaller cap of a later step"),
    "cap_version": Metric("budget", "", "1 plus the number of changes of the cap so far"),

    "accuracy": Metric("reward", "share", "samples right within the cap, of those with a verdict (the mean reward)"),
    "accuracy_untruncated": Metric("reward", "share", "accuracy over the samples that end within the cap"),
    "budget_accuracy": Metric("reward", "share", "J(B): accuracy when every response is clipped to B tokens", "curve"),
    "budget_accuracy_untruncated": Metric("reward", "share", "accuracy over the samples that end within B", "curve"),
    "all_wrong_groups": Metric("reward", "share", "groups in which every answer is wrong"),
    "all_right_groups": Metric("reward", "share", "groups in which every answer is right"),
    "unfilled": Metric("reward", "share", "of prompts_per_step, groups with a signal that max_refill did not find"),
    "uniform_groups": Metric("reward", "share", "groups whose rewards, as shaped, are all equal, or none: no gradient"),
    "shaped_reward": Metric("reward", "", "mean reward that advantages are made of: with what a length rule adds"),
    "leash_lambda": Metric("reward", "", "LEASH: weight of the length penalty in the step"),
    "laser_d_easy": Metric("reward", "tokens", "LASER-D: target length of groups that are right in 2/3 or more"),
    "laser_d_medium": Metric("reward", "tokens", "LASER-D: target length of groups that are right in 1/3 or more"),
    "laser_d_hard": Metric("reward", "tokens", "LASER-D: target length of the other groups"),
    "dot_cut": Metric("reward", "share", "DOT: responses that were cut as outliers of an all-right group"),
    "failed_verifications": Metric("reward", "samples", "samples without a verdict; they are not trained on"),
    "failed_share": Metric("reward", "share", "samples without a verdict; above reward.max_failed: verifier_alarm"),

    "truncated": Metric("rollout", "share", "samples without a stop token within the cap"),
    "forced": Metric("rollout", "share", "samples that were interrupted and made to answer (overlong: forced)"),
    "budget_truncated": Metric("rollout", "share", "samples that would be truncated if the cap were B", "curve"),
    "mean_tokens": Metric("rollout", "tokens", "mean response length"),
    "p50_tokens": Metric("rollout", "tokens", "median response length"),
    "p90_tokens": Metric("rollout", "tokens", "90th percentile of the response length"),
    "samples": Metric("rollout", "samples", "rollouts of the step's own prompts: accuracy, lengths, ... are theirs"),
    "refill_groups": Metric("rollout", "groups", "dynamic sampling: groups sampled beyond the step's own"),
    "tokens": Metric("rollout", "tokens", "response tokens of the step, refills included"),
    "prompt_tokens": Metric("rollout", "tokens", "prompt tokens of the step, once a sample, refills included"),
    "weight_version": Metric("rollout", "", "weight version that the engines sampled under; with a lag the newest one",
                             "text"),
    "staleness_mean": Metric("rollout", "steps", "lag: mean age of the sampled tokens, in weight versions"),
    "staleness_max": Metric("rollout", "steps", "lag: age of the oldest token; never above rollout.lag"),
    "stale_tokens": Metric("rollout", "share", "lag: sampled tokens older than the weights that train on them"),
    "mixed_versions": Metric("rollout", "share", "lag: responses sampled under more than one weight version"),
    "reused": Metric("rollout", "", "the rollouts were in the ledger already (resume or replay)", "flag"),

    "fleet_preemptions": Metric("fleet", "samples", "samples whose KV cache engines dropped to compute it again later"),
    "fleet_kv_usage": Metric("fleet", "share", "fullest KV cache of an engine that was seen, once a second"),
    "fleet_waiting": Metric("fleet", "samples", "most samples that an engine let wait"),
    "fleet_in_flight": Metric("fleet", "samples", "most samples in flight on an engine; those of a group end together"),
    "fleet_limit": Metric("fleet", "samples", "smallest limit of an engine's samples in flight; absent: none had one"),

    "loss": Metric("learner", "", "policy loss, mean over the optimizer steps"),
    "grad_norm": Metric("learner", "", "global gradient norm before clipping, mean over the optimizer steps"),
    "lr": Metric("learner", "", "learning rate of the last optimizer step"),
    "clip_low": Metric("learner", "", "lower clip range of the step: of the phase, of the config, or the loss's own"),
    "clip_high": Metric("learner", "", "upper clip range of the step"),
    "entropy": Metric("learner", "nats", "mean entropy of the policy at the response tokens"),
    "clip_fraction": Metric("learner", "share", "response tokens whose ratio is clipped"),
    "ratio_mean": Metric("learner", "", "mean probability ratio of the policy to the one that sampled"),
    "reference_kl": Metric("learner", "nats", "KL(policy || starting weights) estimated by algorithm.kl_estimator"),
    "entropy_weight": Metric("learner", "", "weight of the entropy bonus in the step"),
    "train_tokens": Metric("learner", "tokens", "tokens fed to the model in training, padding excluded"),

    "mismatch_mean_abs": Metric("mismatch", "nats", "mean |learner - engine| log-probability; lag 0: same weights"),
    "mismatch_max_abs": Metric("mismatch", "nats", "largest |learner - engine| log-probability; as mismatch_mean_abs"),
    "mismatch_kl": Metric("mismatch", "nats", "KL(engine || learner) estimated at the sampled tokens"),
    "correction_fraction": Metric("mismatch", "share", "response tokens that algorithm.correction cuts or masks"),
    "ess": Metric("mismatch", "share", "effective sample size of the learner/engine weights over the number of tokens"),
    "importance_std": Metric("mismatch", "", "standard deviation of the learner/engine weights over the tokens"),

    "probe_mean_abs": Metric("mismatch", "nats", "mean |engine - learner| log-probability of the worst engine in the "
                             "probe after the step's push (push.probe_every)"),
    "probe_max_abs": Metric("mismatch", "nats", "largest |engine - learner| log-probability in that probe"),
    "probe_s": Metric("time", "s", "the probe, a part of push_s"),

    "optimizer_steps": Metric("plan", "", "updates of the weights in the step"),
    "micro_batches": Metric("plan", "", "micro-batches of all ranks and optimizer steps"),
    "empty_micro_batches": Metric("plan", "", "dummies, because there were fewer rows than places"),
    "capacity": Metric("plan", "tokens", "tokens that a micro-batch may hold at this cap"),
    "fill": Metric("plan", "share", "real tokens over tokens run through the model"),
    "occupancy": Metric("plan", "share", "real tokens over the capacity of all micro-batches"),
    "shapes": Metric("plan", "", "distinct micro-batch shapes"),
    "new_shapes": Metric("plan", "", "shapes that no step of the run had before: each costs a GPU a warm-up"),
    "shapes_seen": Metric("plan", "", "distinct micro-batch shapes of the run so far"),
    "widths_used": Metric("plan", "", "bucketed: micro-batches of each padded width", "curve"),
    "imbalance": Metric("plan", "ratio", "estimated cost of the heaviest data-parallel rank over the mean"),
    "dropped_groups": Metric("plan", "groups", "groups left out: no signal, no verdict, or surplus"),
    "surplus_groups": Metric("plan", "groups", "dynamic sampling: groups with a signal beyond prompts_per_step"),

    "failed_commits": Metric("learner", "", "checkpoints that could not be written so far (checkpoint.on_error)"),

    "generation_s": Metric("time", "s", "waiting for rollouts"),
    "sampling_s": Metric("time", "s", "lag: from the admission of the step to its last answer, pushes included"),
    "verification_s": Metric("time", "s", "verifying answers beyond the end of generation"),
    "planning_s": Metric("time", "s", "planning micro-batches and handing the plan over"),
    "training_s": Metric("time", "s", "forward, backward, optimizer"),
    "push_s": Metric("time", "s", "weight update of the whole fleet"),
    "commit_s": Metric("time", "s", "writing checkpoint and commit record"),
    "evaluation_s": Metric("time", "s", "evaluation"),
    "export_s": Metric("time", "s", "writing Hugging Face directories"),
    "other_s": Metric("time", "s", "everything else in the step"),
    "step_s": Metric("time", "s", "the whole step: the sum of its stages"),
    "generation_tokens_per_s": Metric("time", "tokens/s", "response tokens over generation_s (lag: sampling_s)"),
    "training_tokens_per_s": Metric("time", "tokens/s", "train_tokens over training_s"),
}

OF_AN_UPDATE = (
    "loss", "grad_norm", "lr", "entropy", "clip_fraction", "ratio_mean", "reference_kl", "mismatch_mean_abs",
    "mismatch_max_abs", "mismatch_kl", "correction_fraction", "ess", "importance_std", "fill", "occupancy", "imbalance",
    "training_tokens_per_s")
"""What the tokens and micro-batches of an update tell: of a step that trains on nothing (no group has a signal) it is
unknown, not 0."""


def known_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, with null for what is unknown in a step without an update."""
    unknown = OF_AN_UPDATE if record.get("optimizer_steps") == 0 else ()
    return {key: None if key in unknown else value for key, value in record.items()}


class MetricsWriter:
    """Appends the records of a run, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        written = jsonl.read(path)
        self._last = int(written[-1]["step"]) if written else -1

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record of one step.

        Raises:
            ValueError: a key is undocumented, a value of another kind, or the step not after the last one.
        """
        check(record)
        if record["step"] <= self._last:
            raise ValueError(f"step {record['step']} comes after step {self._last}: cut the file with truncate_after")
        jsonl.append(self.path, record)
        self._last = int(record["step"])


def check(record: Mapping[str, Any]) -> None:
    """Refuse undocumented keys, values of the wrong kind, and a record without its step."""
    unknown = sorted(set(record) - set(METRICS))
    if unknown:
        raise ValueError(f"metrics {unknown} are undocumented: describe them in observe.metrics.METRICS")
    wrong = {key: value for key, value in record.items() if not _is(METRICS[key].kind, value)}
    if wrong:
        raise ValueError(f"metrics of the wrong kind: {wrong}")
    if record.get("step") is None:
        raise ValueError("a metrics record needs its step")


def truncate_after(path: Path, step: int) -> int:
    """Drop the records after a step, and whatever is none; atomic. Returns the number of records dropped.

    A run that resumes at step n (the next one to train) calls it with n - 1 before it writes.
    """
    records = jsonl.read(path)
    kept = [record for record in records if isinstance(found := record.get("step"), int) and found <= step]
    if path.exists():
        write_text(path, "".join(map(jsonl.line, kept)))
    return len(records) - len(kept)


def markdown() -> str:
    """The documentation of every key, as a Markdown table: a `|` within a cell is escaped."""
    lines = ["| key | unit | meaning |", "|---|---|---|"]
    rows = [(key, metric.unit, metric.doc.replace("|", "\\|")) for key, metric in METRICS.items()]
    return "\n".join(lines + [f"| `{key}` | {unit} | {doc} |" for key, unit, doc in rows])


def _is(kind: Kind, value: Any) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "curve":
        return isinstance(value, Mapping) and all(_is("number", item) for item in value.values())
    flag = type(value).__name__ in ("bool", "bool_")
    return value is None or (flag if kind == "flag" else isinstance(value, Real) and not flag)
