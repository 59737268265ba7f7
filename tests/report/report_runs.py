"""Run directories for the report's tests, written without engines or learners. Not a test."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

BUDGETS = (256, 512, 1024, 2048)
HOSTILE = ('</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">', "null \x00 bell \x07",
           "перевірка 日本語 עברית \u202e reversed", "lone \ud800 surrogate", "{{ 7 * 7 }} ${window.hacked = 3}")


def record(step: int, *, steps: int, cycle_steps: int = 80, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Metrics of a step of a healthy run: accuracy rises, answers become shorter."""
    noise = random.Random(f"{seed}-{step}")
    done, place = step / steps, step % cycle_steps / cycle_steps
    cap = round(1280 + 768 * math.cos(2 * math.pi * place))
    accuracy = 0.3 + 0.5 * (1 - math.exp(-4 * done)) + noise.uniform(-0.03, 0.03)
    tokens = 1200 - 700 * (1 - math.exp(-3 * done)) + noise.uniform(-40, 40)
    curve = {str(budget): accuracy * (1 - math.exp(-budget / 400)) for budget in BUDGETS}
    return {"step": step, "phase": "compression" if place < 0.5 else "expansion", "cycle": step // cycle_steps,
            "cap": cap, "cap_version": step + 1, "weight_version": str(step), "accuracy": accuracy,
            "accuracy_untruncated": min(1.0, accuracy + 0.05), "budget_accuracy": curve, "truncated": 0.1 * (1 - done),
            "all_wrong_groups": 0.2 * (1 - done), "all_right_groups": 0.1 + 0.3 * done,
            "uniform_groups": 0.3 + 0.1 * done, "mean_tokens": tokens, "p50_tokens": 0.9 * tokens,
            "p90_tokens": min(cap, 1.6 * tokens), "samples": 1024, "tokens": int(1024 * tokens),
            "failed_verifications": 0, "failed_share": 0.0, "reused": False, "loss": noise.uniform(-0.01, 0.01),
            "grad_norm": noise.uniform(0.2, 0.4), "entropy": 0.6 - 0.3 * done, "clip_fraction": 0.01, "ess": 0.99,
            "mismatch_mean_abs": 0.008, "mismatch_max_abs": noise.uniform(0.2, 0.6), "optimizer_steps": 2,
            "micro_batches": 64, "fill": 0.95, "occupancy": 0.9, "shapes": 4, "new_shapes": int(step < 10),
            "widths_used": {"512": 40, str(cap): 24}, "imbalance": 1.05,
            "staleness_mean": 0.4, "staleness_max": 1, "refill_groups": 3, "surplus_groups": 1,
            "unfilled": 0.0, "train_tokens": int(1100 * tokens), "generation_s": 40.0, "verification_s": 0.5,
            "planning_s": 0.2, "training_s": 30.0, "push_s": 2.0, "commit_s": 0.0, "evaluation_s": 0.0,
            "export_s": 0.0, "other_s": 0.3, "step_s": 73.0, "generation_tokens_per_s": 1024 * tokens / 40,
            "training_tokens_per_s": 1100 * tokens / 30, **changes}


def evaluation(tag: str, accuracy: float, tokens: float, questions: int = 200, seed: int = 0,
               **changes: Any) -> dict[str, Any]:
    """A report of an evaluation as `evaluations/TAG.json` holds it."""
    noise = random.Random(f"{tag!a}-{seed}")
    right = [float(noise.random() < accuracy) for _ in range(questions)]
    lengths = [tokens * noise.uniform(0.5, 1.5) for _ in range(questions)]
    share, half = sum(right) / questions, 0.06
    ci = [max(0.0, share - half), min(1.0, share + half)]
    at = {"accuracy": share, "accuracy_ci": ci, "mean_tokens": tokens, "truncated": 0.02, "problems": questions}
    examples = [{"prompt": f"What is {number} + {number}?", "response": f"{tag}: it is {2 * number}", "tier": "easy",
                 "answer": str(2 * number), "outcome": "right" if right[number] else "wrong", "tokens": 12}
                for number in range(8)]
    return {"tag": tag, "weight_version": "0", "suite": "held-out", **at, "mean_tokens": sum(lengths) / questions,
            "mean_tokens_ci": [tokens - 20, tokens + 20], "samples": 1, "suites": {}, "examples": examples,
            "budgets": {str(budget): _at(share * (1 - math.exp(-budget / 400))) for budget in BUDGETS},
            "tiers": {"easy": at, "hard": at},
            "questions": {"fingerprint": "abc", "accuracy": right, "tokens": lengths}, **changes}


def _at(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci": [max(0.0, accuracy - 0.06), min(1.0, accuracy + 0.06)]}


def write_run(root: Path, *, steps: int = 40, cycle_steps: int = 80, evaluations: int = 3, seed: int = 0,
              verdict: bool = True, spans: bool = True, **config: Any) -> RunDir:
    """The directory of a made-up run, with everything but a ledger."""
    paths = RunDir(root)
    root.mkdir(parents=True)
    paths.config.write_text(yaml.safe_dump({
        "name": root.name, "seed": seed, "model": {"path": "model"}, "batching": {"mode": "packed"},
        "budget": {"schedule": "cosine", "l_min": 512, "l_max": 2048}, "reward": {"max_failed": 0.05}, **config}))
    lines(paths.metrics, [record(step, steps=steps, cycle_steps=cycle_steps, seed=seed) for step in range(steps)])
    lines(paths.events, [{"ts": 1.7e9, "kind": "launch", "step": None}, {"ts": 1.7e9 + 60, "kind": "commit",
                                                                          "step": steps, "seconds": 4.0}])
    if spans:
        write_spans(paths, steps)
    paths.evaluations.mkdir()
    for tag, accuracy, tokens in (("start", 0.3, 1200.0), ("iter1-compressed", 0.6, 640.0),
                                  ("iter1-expanded", 0.7, 700.0))[:evaluations]:
        (paths.evaluations / f"{tag}.json").write_text(json.dumps(evaluation(tag, accuracy, tokens, seed=seed)))
    if verdict:
        paths.result.write_text(json.dumps({"status": "success", "step": steps, "steps": steps, "task": "train",
                                            "seconds": 73.0 * steps, "reason": "every main process ended with 0"}))
    return paths


def write_spans(paths: RunDir, steps: int, ranks: int = 2) -> None:
    """Two learners that generate, train and push in each step, an engine and a collector."""
    paths.spans.mkdir()
    for rank in range(ranks):
        lines(paths.spans / f"learner-{rank}.jsonl", [
            {"process": f"learner-{rank}", "step": step, "spans": [
                ["generation", 1.7e9 + 73 * step, 40.0],
                ["training", 1.7e9 + 73 * step + 41, 30.0 + rank - 0.01 * (step % 50)],
                ["push", 1.7e9 + 73 * step + 72, 1.0]]} for step in range(steps)])
    for process, name in (("collector", "collect"), ("engine-0", "busy")):
        lines(paths.spans / f"{process}.jsonl", [
            {"process": process, "step": None, "spans": [[name, 1.7e9 + 73 * step + 0.5, 39.0, {"requests": 8}]]}
            for step in range(steps)])


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def write_ledger_step(paths: RunDir, step: int, groups: int = 3, samples: int = 4) -> None:
    """A closed ledger step; token ids are those of the shipped tiny tokenizer."""
    writer = StepWriter(paths.ledger, StepBudget(step, 0, "compression", 64, 1), "identity")
    for group in range(groups):
        writer.append([_rollout(step, group, sample) for sample in range(samples)])
    writer.close()


def _rollout(step: int, group: int, sample: int) -> Rollout:
    outcome = ("wrong", "right", "right", "failed")[sample] if group else "right"
    return Rollout(step=step, phase="compression", cap=64, cap_version=1, group=group, sample=sample,
                   prompt_id=f"p{group}", tier="t", answer="7", prompt_ids=[5, 6, 7], response_ids=[8, 9, 10 + sample],
                   logprobs=[-1.0] * 3, finish_reason="stop", truncated=False, outcome=outcome,
                   reward=float(outcome == "right"), budget_rewards=[0.0, 1.0], spans=[], engine=0, seconds=1.0)
