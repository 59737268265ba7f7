"""Forced answers: what is asked of the engines, and what the rows then say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, refuse, run_config
from hypothesis import given
from hypothesis import strategies as st
from test_collector import STAMP, collect, content, rows_of

from siri_megatron.config import RewardConfig, RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import EOS_ID, encode
from siri_megatron.errors import ConfigError, EngineError
from siri_megatron.ledger.schema import Rollout
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.forced import ForcedAnswer
from siri_megatron.rollout.request import Request

TEXT, RESERVE, CAP = "~A", 5, STAMP.cap
FORCED = encode(TEXT)
SECTIONS: dict[str, Any] = {"reward": {"forced_text": TEXT, "forced_reserve": RESERVE},
                            "phases": {"compression": {"overlong": "forced"}}}


def all_rows(config: RunConfig) -> list[Rollout]:
    return content(rows_of(config))


def test_interrupted_responses_get_the_text_and_go_on(tmp_path: Path) -> None:
    config, engine = run_config(tmp_path, **SECTIONS), FakeEngine()
    stats = collect(config, engine)
    first = {tuple(body["token_ids"]): body for body in engine.asked if body["sampling_params"]["n"] == 3}
    second = [body for body in engine.asked if body["sampling_params"]["n"] == 1]
    rows = all_rows(config)
    forced = [row for row in rows if row.forced_end]
    assert {body["sampling_params"]["max_tokens"] for body in first.values()} == {CAP - RESERVE}
    assert {body["sampling_params"]["max_tokens"] for body in second} == {RESERVE - len(FORCED)}
    assert 0 < len(forced) == len(second) < len(rows)
    continued = {tuple(body["token_ids"]) for body in second}
    for row in forced:
        assert (row.forced_start, row.forced_end) == (CAP - RESERVE, CAP - RESERVE + len(FORCED))
        assert row.response_ids[row.forced_start : row.forced_end] == FORCED
        assert row.logprobs[row.forced_start : row.forced_end] == [0.0] * len(FORCED)
        assert tuple(row.prompt_ids + row.response_ids[: row.forced_end]) in continued
        assert row.forced_end < len(row.response_ids) == len(row.logprobs) <= CAP
        assert row.spans == [{"version": "0", "start": 0, "end": row.forced_start},
                             {"version": "0", "start": row.forced_end, "end": len(row.response_ids)}]
        assert row.truncated == (EOS_ID not in row.response_ids) == (row.finish_reason == "length")
    assert stats["forced"] == len(forced) / len(rows)
    seeds = [body["sampling_params"]["seed"] for body in engine.asked]
    assert len(set(seeds)) == len(seeds)


def test_responses_that_ended_are_as_the_engine_gave_them(tmp_path: Path) -> None:
    """The same samples as without forcing, where those end before the interruption."""
    forced, plain = run_config(tmp_path / "a", **SECTIONS), run_config(tmp_path / "b")
    collect(forced, FakeEngine())
    collect(plain, FakeEngine())
    pairs = list(zip(all_rows(forced), all_rows(plain), strict=True))
    ended = [(one, other) for one, other in pairs if not one.truncated and not one.forced_end]
    assert ended
    assert all(one == other for one, other in ended)
    assert all(len(other.response_ids) > CAP - RESERVE for one, other in pairs if one.forced_end)


def test_a_forced_answer_can_be_right(tmp_path: Path) -> None:
    """The verdict is that on the whole: the text brings the answer's mark, what is sampled after it the answer."""
    class Answering(FakeEngine):
        def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
            choices = super()._choices(body)
            if body["sampling_params"]["n"] == 1:
                ids = [*encode("7"), EOS_ID]
                choices[0] |= {"token_ids": ids, "finish_reason": "stop",
                               "logprobs": {"content": [{"token_id": token, "logprob": -1.0} for token in ids]},
                               "weight_versions": [{"version": "0", "start": 0, "end": len(ids)}]}
            return choices

    config = run_config(tmp_path, **SECTIONS, data={"train_problems": 40})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"prompts_per_step": 30})})
    collect(config, Answering())
    forced = [row for row in all_rows(config) if row.forced_end]
    assert {row.outcome for row in forced} == {"right", "wrong"}
    assert all((row.outcome == "right") == (row.answer == "7") for row in forced)
    assert not any(row.truncated for row in forced)


def test_only_in_its_phase(tmp_path: Path) -> None:
    config, engine = run_config(tmp_path, **SECTIONS), FakeEngine()
    assert collect(config, engine, stamp=replace(STAMP, phase="expansion"))["forced"] == 0
    assert {body["sampling_params"]["max_tokens"] for body in engine.asked} == {CAP}


def test_reproducible_whatever_the_fleet_and_after_a_kill(tmp_path: Path) -> None:
    one, other, killed = (run_config(tmp_path / name, **SECTIONS) for name in "abc")
    collect(one, FakeEngine())
    collect(other, FakeEngine(), FakeEngine(delay_s=0.05))
    assert all_rows(one) == all_rows(other)
    with pytest.raises(EngineError):
        collect(killed, FakeEngine(), FakeEngine(delay_s=0.5, fault=refuse(400)))
    collect(killed, FakeEngine())
    assert all_rows(killed) == all_rows(one)
    unseeded = run_config(tmp_path / "d", **SECTIONS, reproducible=False)  # negative control
    collect(unseeded, FakeEngine())
    assert all_rows(unseeded) != all_rows(one)


def test_a_continuation_under_other_weights_is_refused(tmp_path: Path) -> None:
    class Moving(FakeEngine):
        def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
            self.version = "1" if body["sampling_params"]["n"] == 1 else "0"
            return super()._choices(body)

    with pytest.raises(EngineError, match="version 1, expected 0"):
        collect(run_config(tmp_path, **SECTIONS), Moving())


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(thought=st.integers(1, 20), ids=tokens, answer=st.integers(1, 20), reserve=st.integers(1, 20))
def test_within_the_cap_and_marked(thought: int, ids: list[int], answer: int, reserve: int) -> None:
    forced = ForcedAnswer(tuple(ids), len(ids) + reserve)
    request = Request(0, (1, 2), 4, thought + forced.reserve, 1.0, 3, (99,))
    before = Sample([50] * thought, [-1.0] * thought, "length", [{"version": "4", "start": 0, "end": thought}])
    after = forced.after(request, before, 8)
    assert forced.before(request).max_tokens == thought
    assert (after.n, after.seed, after.max_tokens, after.group) == (1, 8, reserve, 0)
    assert list(after.prompt_ids) == [1, 2, *before.token_ids, *ids]
    answer = min(answer, reserve)
    joined = forced.joined(before, Sample([60] * answer, [-2.0] * answer, "stop",
                                          [{"version": "4", "start": 0, "end": answer}]))
    assert len(joined.token_ids) == len(joined.logprobs) <= request.max_tokens
    kinds = ["thought"] * thought + ["forced"] * len(ids) + ["answer"] * answer
    for place, kind in enumerate(kinds):
        assert (joined.forced[0] <= place < joined.forced[1]) == (kind == "forced")
        assert joined.logprobs[place] == {"thought": -1.0, "forced": 0.0, "answer": -2.0}[kind]
        assert any(span["start"] <= place < span["end"] for span in joined.spans) == (kind != "forced")


@pytest.mark.parametrize(("text", "reserve", "named"), [
    ("", 5, "has the tokens []"), ("AAAA", 4, "has 4 tokens, reward.forced_reserve=4"), ("A$", 9, "stop tokens")])
def test_a_text_that_leaves_no_answer_is_refused(tmp_path: Path, text: str, reserve: int, named: str) -> None:
    codec = TextCodec.load(run_config(tmp_path).model.path)
    text = text.replace("$", codec.decode([EOS_ID], skip_special=False))
    with pytest.raises(ConfigError) as caught:
        ForcedAnswer.of(RewardConfig(forced_text=text, forced_reserve=reserve), codec)
    assert named in caught.value.what


def test_the_launch_check_refuses_it_too(tmp_path: Path) -> None:
    from siri_megatron.launch.preflight import check_prompts

    check_prompts(run_config(tmp_path, **SECTIONS), "train")
    with pytest.raises(ConfigError, match="forced_reserve=5"):
        check_prompts(run_config(tmp_path, **SECTIONS | {"reward": {"forced_text": "A" * 5, "forced_reserve": 5}}),
                      "train")
