"""Answers of an engine are checked before anything is made of them."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import parse_answer, request_body

STOP, CAP = 9, 6


def choice(index: int, ids: list[int], version: str = "3") -> dict[str, Any]:
    return {"index": index, "token_ids": ids, "finish_reason": "stop" if ids[-1] == STOP else "length",
            "logprobs": {"content": [{"token_id": token, "logprob": -0.5 - place, "rank": 1, "top_logprobs": []}
                                     for place, token in enumerate(ids)]},
            "weight_versions": [{"version": version, "start": 0, "end": len(ids)}]}


def answer() -> dict[str, Any]:
    return {"choices": [choice(1, [1, 2, 3, 4, 5, 6]), choice(0, [4, STOP])]}


def parse(payload: object) -> Any:
    return parse_answer(payload, n=2, max_tokens=CAP, stop_ids=[STOP])


def test_samples_come_in_index_order_with_stop_token_and_spans() -> None:
    first, second = parse(answer())
    assert (first.token_ids, first.logprobs, first.finish_reason) == ([4, STOP], [-0.5, -1.5], "stop")
    assert (second.token_ids, second.finish_reason) == ([1, 2, 3, 4, 5, 6], "length")
    assert second.spans == [{"version": "3", "start": 0, "end": 6}]


@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=CAP - 1), stopped=st.booleans())
def test_well_formed_answers_pass(ids: list[int], stopped: bool) -> None:
    ids = [*ids, STOP] if stopped else (ids * CAP)[:CAP]
    [sample] = parse_answer({"choices": [choice(0, ids)]}, n=1, max_tokens=CAP, stop_ids=[STOP])
    assert sample.token_ids == ids
    assert len(sample.logprobs) == len(ids)


def compact(payload: dict[str, Any]) -> dict[str, Any]:
    """The same answer in packed arrays, written out with struct."""
    packed = copy.deepcopy(payload)
    for choice in packed["choices"]:
        ids, entries = choice["token_ids"], choice["logprobs"]["content"]
        choice |= {"token_ids": struct.pack(f"<{len(ids)}i", *ids),
                   "logprob_ids": struct.pack(f"<{len(entries)}i", *(entry["token_id"] for entry in entries)),
                   "logprobs": struct.pack(f"<{len(entries)}f", *(entry["logprob"] for entry in entries))}
    return packed


def test_packed_arrays_say_the_same() -> None:
    assert parse(compact(answer())) == parse(answer())


PACKED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a torn number": lambda choice: choice.update(token_ids=choice["token_ids"][:-1]),
    "an id too few": lambda choice: choice.update(token_ids=choice["token_ids"][:-4]),
    "a log-prob too few": lambda choice: choice.update(logprobs=choice["logprobs"][:-4]),
    "a log-prob of another token": lambda choice: choice.update(logprob_ids=choice["logprob_ids"][4:] + b"\0\0\0\0"),
    "no ids of the log-probs": lambda choice: choice.pop("logprob_ids"),
    "a log-prob not a number": lambda choice: choice.update(logprobs=struct.pack("<6f", *[float("nan")] * 6)),
}


@pytest.mark.parametrize("what", PACKED)
def test_malformed_arrays_are_refused(what: str) -> None:
    packed = compact(answer())
    PACKED[what](packed["choices"][0])
    with pytest.raises(EngineError, match="engine answered wrongly"):
        parse(packed)


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    payload = copy.deepcopy(answer())
    change(payload)
    return payload


def entry(payload: dict[str, Any], place: int = 0) -> Any:
    return payload["choices"][0]["logprobs"]["content"][place]


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "no choices": lambda p: p.pop("choices"),
    "a choice too few": lambda p: p["choices"].pop(),
    "an index twice": lambda p: p["choices"][0].update(index=0),
    "no token ids": lambda p: p["choices"][0].pop("token_ids"),
    "token ids as text": lambda p: p["choices"][0].update(token_ids=["1"] * 6),
    "no tokens": lambda p: p["choices"][0].update(token_ids=[]),
    "too many tokens": lambda p: p["choices"][0].update(token_ids=[1] * 7),
    "stop without stop token": lambda p: p["choices"][0].update(finish_reason="stop"),
    "stop token inside": lambda p: p["choices"][0].update(token_ids=[1, STOP, 3, 4, 5, 6]),
    "length below the cap": lambda p: p["choices"][1].update(finish_reason="length"),
    "aborted": lambda p: p["choices"][0].update(finish_reason="abort"),
    "no reason": lambda p: p["choices"][0].pop("finish_reason"),
    "no log-probs": lambda p: p["choices"][0].update(logprobs=None),
    "a log-prob too few": lambda p: p["choices"][0]["logprobs"]["content"].pop(),
    "a log-prob of another token": lambda p: entry(p).update(token_id=7),
    "a log-prob missing": lambda p: entry(p).pop("logprob"),
    "a log-prob not a number": lambda p: entry(p).update(logprob=float("nan")),
    "a log-prob that vLLM could not give": lambda p: entry(p).update(logprob=-9999.0),
    "a positive log-prob": lambda p: entry(p).update(logprob=0.1),
    "no spans": lambda p: p["choices"][0].update(weight_versions=None),
    "a gap in the spans": lambda p: p["choices"][0].update(weight_versions=[
        {"version": "1", "start": 0, "end": 2}, {"version": "2", "start": 3, "end": 6}]),
    "spans too short": lambda p: p["choices"][0]["weight_versions"][0].update(end=5),
    "a span without version": lambda p: p["choices"][0]["weight_versions"][0].pop("version"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_malformed_answers_are_refused(what: str) -> None:
    with pytest.raises(EngineError, match="engine answered wrongly"):
        parse(broken(BROKEN[what]))


@pytest.mark.parametrize("payload", [None, [], "text", {"choices": "x"}, {"choices": [1, 2]}])
def test_other_shapes_are_refused(payload: object) -> None:
    with pytest.raises(EngineError, match="engine answered wrongly"):
        parse(payload)


def test_request_says_everything_that_decides_the_answer() -> None:
    body = request_body((1, 2), n=3, max_tokens=CAP, temperature=0.7, seed=5, stop_ids=(STOP,))
    assert body["token_ids"] == [1, 2]
    assert body["sampling_params"] == {
        "n": 3, "max_tokens": CAP, "temperature": 0.7, "seed": 5, "logprobs": 0, "detokenize": False,
        "stop_token_ids": [STOP], "ignore_eos": True}
    assert "seed" not in request_body((1,), n=1, max_tokens=1, temperature=1, seed=None, stop_ids=())["sampling_params"]
