"""The real thing, small: Megatron learners, vLLM engines, a moving cap; killed, resumed, replayed, evaluated."""

from __future__ import annotations

import json

import pytest
import torch
from real_run import IN_PROCESS, SMALL, RealRun, command, same_weights, siri

from siri_megatron.ledger.read import open_step
from siri_megatron.paths import RunDir

pytestmark = pytest.mark.engine
CAPS = [88, 48, 88, 128]


def test_a_killed_run_resumes_to_its_end(resumed: RealRun):
    assert resumed.result["status"] == "success"
    assert [record["step"] for record in resumed.records] == [0, 1, 2, 3]
    assert [record["cap"] for record in resumed.records] == CAPS
    assert json.loads(resumed.paths.tags.read_text()).keys() == {"iter1-compressed", "iter1-expanded"}
    assert {path.stem for path in resumed.paths.evaluations.glob("*.json")} == {
        "start", "iter1-compressed", "iter1-expanded"}


def test_replay_of_the_ledger_ends_with_the_same_weights_and_metrics(resumed: RealRun, replayed: RealRun):
    for tag in ("iter1-compressed", "iter1-expanded"):
        assert same_weights(resumed.weights(tag), replayed.weights(tag))
    assert resumed.comparable() == replayed.comparable()


def test_training_changed_the_weights(resumed: RealRun):
    """Negative control of the comparison above."""
    assert not same_weights(resumed.weights("iter1-compressed"), resumed.weights("iter1-expanded"))


def test_every_rollout_obeys_its_stamp(resumed: RealRun):
    for step, cap in enumerate(CAPS):
        rows = open_step(resumed.paths.ledger, step)
        assert rows.budget.cap == cap
        assert rows.response_length.max() <= cap
        assert {span["version"] for i in range(len(rows)) for span in rows.rollout(i).spans} == {str(step)}


def test_learner_and_engine_agree_after_every_push(resumed: RealRun):
    trained = [record for record in resumed.records if record["optimizer_steps"]]
    assert trained
    assert max(record["mismatch_max_abs"] for record in trained) < 1e-4
    assert max(record["mismatch_mean_abs"] for record in trained) < 1e-5


def test_micro_batches_keep_to_what_is_provisioned_at_every_cap(resumed: RealRun):
    """Attention is fused, so memory is linear in tokens: the capacity stays, and no micro-batch is above it."""
    trained = [record for record in resumed.records if record["optimizer_steps"]]
    assert {record["capacity"] for record in trained} == {4096}
    assert all(0 < record["occupancy"] <= 1 for record in trained)
    assert max(record["mean_tokens"] for record in trained if record["cap"] == 48) <= 48


def test_export_is_what_the_learner_committed(resumed: RealRun):
    """transformers gives the exported weights the log-probs that the engines sampled with one step later."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resumed.paths.export / "iter1-compressed", dtype=torch.float32)
    rows = open_step(resumed.paths.ledger, 2)
    for row in map(rows.rollout, range(0, len(rows), 9)):
        logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits[0].log_softmax(-1)
        expected = [logits[len(row.prompt_ids) - 1 + at, token].item() for at, token in enumerate(row.response_ids)]
        assert row.logprobs == pytest.approx(expected, abs=1e-4)


def test_evaluation_of_an_export(resumed: RealRun, runs):
    """`siri eval` of an export repeats the evaluation that the run made of these weights."""
    output = siri("eval", str(resumed.paths.export / "iter1-expanded"), "--problems", "24", *IN_PROCESS,
                  "name=evaluated")
    inside = json.loads((resumed.paths.evaluations / "iter1-expanded.json").read_text())
    alone = json.loads((runs / "evaluated" / "evaluations" / "iter1-expanded.json").read_text())
    assert (alone["accuracy"], alone["mean_tokens"], alone["budgets"]) == (
        inside["accuracy"], inside["mean_tokens"], inside["budgets"])
    assert "iter1-expanded" in output


def test_prompts_of_ones_own_and_the_math_verifier(runs, tmp_path):
    """JSONL prompts, a template and math-verify through the whole rollout half."""
    rows = [{"prompt": f"a{i % 10}b{i % 7}", "answer": str((i % 10 + i % 7) % 10)} for i in range(16)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    siri(*command("tiny.yaml", runs, "jsonl", *SMALL, *IN_PROCESS, "budget.cycle_steps=2", "data.source=dataset",
                  f"data.train={path}", f"data.eval={path}", "data.template={prompt}|",
                  "reward.verifier=math", flags=("--rollout-only",))[1:])
    rows_of_step = open_step(RunDir(runs / "jsonl").ledger, 0)
    assert set(rows_of_step.outcome) <= {"right", "wrong"}
    assert "right" in set(rows_of_step.outcome)
