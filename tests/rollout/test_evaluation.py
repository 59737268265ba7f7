"""Evaluations against fake engines: suites, budgets, pinned weights, killed and gone on with."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, client_of, run_config, serving

from siri_megatron.config import RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import suite_prompts
from siri_megatron.errors import EngineError
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.evaluation import Evaluator, example_places
from siri_megatron.rollout.suites import suites_of


def evaluator_of(config: RunConfig) -> Evaluator:
    codec = TextCodec.load(config.model.path)
    suites = suites_of(config.evaluation, suite_prompts(config, codec))
    return Evaluator(config, suites, codec, build_verifier(config.reward, codec), config.run_dir / "evaluations")


def evaluate(config: RunConfig, *engines: FakeEngine, version: str = "5", tag: str = "start",
             progress: Progress | None = None, connections: int = 8) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with asyncio.timeout(30), serving(*engines) as urls:
            client = client_of(urls, version, connections=connections)
            try:
                return await evaluator_of(config).evaluate(tag, version, client, progress or Progress())
            finally:
                await client.close()

    return run(work())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def suites_config(place: Path, **evaluation: Any) -> RunConfig:
    """Six held-out problems and a suite of five questions with settings of its own."""
    place.mkdir(exist_ok=True)
    path = place / "suite.jsonl"
    rows = [{"prompt": f"a{i}b1|", "answer": str(i % 3), "id": f"s{i}", "tier": "even" if i % 2 == 0 else "odd"}
            for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"name": "own", "data": str(path), "samples": 4, "budgets": [6, 12], "temperature": 0.6, "top_p": 0.9}
    usual = {"problems": 6, "samples": 2, "budgets": [8, 16], "suites": [suite]}
    return run_config(place, evaluation=usual | evaluation)


def test_every_suite_has_its_own_settings(tmp_path: Path) -> None:
    engine = FakeEngine(version="5")
    report = evaluate(suites_config(tmp_path), engine)
    asked = [body["sampling_params"] for body in engine.asked]
    kinds = {(ask["n"], ask["max_tokens"], ask["temperature"], ask.get("top_p")) for ask in asked}
    assert kinds == {(2, 16, 1.0, None), (4, 12, 0.6, 0.9)}
    assert (len(asked), len({ask["seed"] for ask in asked})) == (11, 11)
    own = report["suites"]["own"]
    assert (report["suite"], report["problems"], report["samples"], report["tag"]) == ("held-out", 6, 2, "start")
    assert (own["problems"], own["samples"], own["temperature"], own["top_p"]) == (5, 4, 0.6, 0.9)
    assert (set(report["budgets"]), set(own["budgets"])) == ({"8", "16"}, {"6", "12"})
    assert set(own["tiers"]) == {"even", "odd"}
    assert set(own["pass_at"]) == {"1", "2", "4"}
    assert own["pass_at"]["1"] == pytest.approx(own["accuracy"])
    assert len(own["examples"]) == 5


def test_a_suite_does_not_change_the_others(tmp_path: Path) -> None:
    """The run's own problems get the seeds that they have without suites."""
    with_suite = evaluate(suites_config(tmp_path / "a"), FakeEngine(version="5"))
    alone = evaluate(suites_config(tmp_path / "b", suites=[]), FakeEngine(version="5"))
    leave = {"suites", "seconds"}
    assert {k: v for k, v in with_suite.items() if k not in leave} == {k: v for k, v in alone.items() if k not in leave}


def test_numbers_against_counting(tmp_path: Path) -> None:
    """Oracle: the answers as the engine gave them, judged by their text, clipped by hand."""
    engine = FakeEngine(version="5")
    suite = suites_config(tmp_path).evaluation.suites[0].model_dump() | {"samples": 32}
    config = suites_config(tmp_path, suites=[suite])
    codec = TextCodec.load(config.model.path)
    report = evaluate(config, engine)["suites"]["own"]
    prompts = {prompt.token_ids: prompt for prompt in suite_prompts(config, codec)["own"]}
    right = {6: 0, 12: 0}
    tokens = 0
    for body in engine.asked:
        prompt = prompts.get(tuple(body["token_ids"]))
        if prompt is None:
            continue
        for choice in engine._choices(body):
            ids = choice["token_ids"]
            tokens += len(ids)
            for budget in right:
                right[budget] += ids[-1] == 31 and len(ids) <= budget and codec.decode(ids)[-1] == prompt.answer
    assert {budget: at["accuracy"] * 160 for budget, at in report["budgets"].items()} == {
        str(budget): pytest.approx(count) for budget, count in right.items()}
    assert report["tokens"] == tokens
    assert 0 < right[6] < right[12]


def test_token_budget(tmp_path: Path) -> None:
    config, engine = suites_config(tmp_path, max_tokens=4 * (2 * 16 + 4 * 12)), FakeEngine(version="5")
    report = evaluate(config, engine)
    assert (report["problems"], report["left_out"]) == (4, 2)
    assert (report["suites"]["own"]["problems"], report["suites"]["own"]["left_out"]) == (4, 1)
    assert report["tokens"] + report["suites"]["own"]["tokens"] <= config.evaluation.max_tokens
    assert len(engine.asked) == 8


def test_deadline_names_its_own_key(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"evaluation start: 0 of 11 groups after 0\.3 s") as late:
        evaluate(suites_config(tmp_path, timeout_s=0.3), FakeEngine(version="5", delay_s=60))
    assert late.value.rule == "the samples come within evaluation.timeout_s"


def test_answers_of_other_weights_are_refused(tmp_path: Path) -> None:
    """The weights are pinned: one answer under others ends the evaluation, and says which."""
    with pytest.raises(EngineError, match="sampled under weight version 6, expected 5"):
        evaluate(suites_config(tmp_path), FakeEngine(version="5"), FakeEngine(version="6"))


def test_weights_that_change_within_an_answer_are_refused(tmp_path: Path) -> None:
    engine = FakeEngine(version="5")
    whole = engine._choices

    def mixed(body: dict[str, Any]) -> list[dict[str, Any]]:
        choices = whole(body)
        n = len(choices[-1]["token_ids"])
        choices[-1]["weight_versions"] = [{"version": "5", "start": 0, "end": 1},
                                          {"version": "6", "start": 1, "end": n}]
        return choices

    engine._choices = mixed  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="sampled under weight version 5, 6, expected 5"):
        evaluate(suites_config(tmp_path), engine)


def without_clock(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "seconds"}


def test_killed_evaluation_asks_only_what_is_missing(tmp_path: Path) -> None:
    whole = evaluate(suites_config(tmp_path / "whole"), FakeEngine(version="5"))
    config = suites_config(tmp_path / "killed")
    failing = FakeEngine(version="5", fault=after(7))
    with pytest.raises(EngineError):
        evaluate(config, failing, connections=2)
    done = len(journal_lines(config)) - 1
    assert 5 <= done <= 7
    engine, progress = FakeEngine(version="5"), Progress()
    report = evaluate(config, engine, progress=progress)
    assert len(engine.asked) == 11 - done
    assert (progress.groups, progress.groups_done) == (11, 11)
    assert without_clock(report) == without_clock(whole)
    again = FakeEngine(version="5")
    assert without_clock(evaluate(config, again)) == without_clock(whole)
    assert again.asked == []


@pytest.mark.parametrize("change", ["version", "tag", "seed", "budgets", "questions", "reward"])
def test_an_answer_counts_for_the_same_evaluation_only(tmp_path: Path, change: str) -> None:
    config = suites_config(tmp_path)
    evaluate(config, FakeEngine(version="5"))
    version, tag = "6" if change == "version" else "5", "later" if change == "tag" else "start"
    if change == "seed":
        config = config.model_copy(update={"seed": 2})
    elif change == "budgets":
        config = suites_config(tmp_path, budgets=[8, 15])
    elif change == "questions":
        config = suites_config(tmp_path, problems=5)
    elif change == "reward":
        config = config.model_copy(update={"reward": config.reward.model_copy(update={"timeout_s": 1.0})})
    engine = FakeEngine(version=version)
    evaluate(config, engine, version=version, tag=tag)
    assert len(engine.asked) == (10 if change == "questions" else 11)


def test_forgotten_when_the_report_is_written(tmp_path: Path) -> None:
    config = suites_config(tmp_path)
    evaluate(config, FakeEngine(version="5"))
    evaluator_of(config).forget("start")
    assert not (config.run_dir / "evaluations" / "start.journal").exists()
    evaluator_of(config).forget("start")


def journal_lines(config: RunConfig) -> list[str]:
    return (config.run_dir / "evaluations" / "start.journal").read_text().splitlines()


def after(n: int) -> Any:
    """A fault: requests after the first n are refused for good."""
    from fake_engine import refuse

    seen: list[int] = []

    def fault(body: dict[str, Any]) -> Any:
        seen.append(1)
        return refuse(400)(body) if len(seen) > n else None

    return fault


def test_no_verdict_survives_the_journal(tmp_path: Path) -> None:
    """NaN is null on the way, and no accuracy on the other side."""
    config = suites_config(tmp_path)
    evaluate(config, FakeEngine(version="5"))
    path = config.run_dir / "evaluations" / "start.journal"
    evaluator = evaluator_of(config)
    from siri_megatron.rollout.eval_journal import Journal

    journal = Journal(path, evaluator._key("start", "5"), "5")
    for answers in journal.done.values():
        for answer in answers:
            answer["rewards"] = dict.fromkeys(answer["rewards"])
    report = evaluator._report(evaluator._suites[0], journal)
    journal.close()
    assert (report["accuracy"], report["failed_verifications"], report["pass_at"]) == (None, 12, {})
    assert not math.isnan(report["mean_tokens"])


@pytest.mark.parametrize(("n", "places"), [(1, [0]), (8, list(range(8))), (17, list(range(0, 16, 2)))])
def test_examples_are_few_and_spread(n: int, places: list[int]) -> None:
    assert list(example_places(n)) == places
