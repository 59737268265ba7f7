"""What is said to a vLLM server to get rollouts, and what must come back. Pure: builds bodies, checks answers.

The route is vLLM's token-in, token-out one: no tokenizer on the server, and every answer says under which weight
versions its tokens were sampled.

Invariants of a parsed answer (`parse_answer` raises EngineError otherwise):

- one_sample_per_request: exactly `n` samples, in index order.
- aligned: as many log-probs as tokens; each belongs to the token at its place.
- stop_token_kept: a sample finished by `stop` ends with a stop id, which is there with its log-prob; no stop id stands
  before the last place.
- aborted_only_if_asked: a sample finished by `abort` is taken only where the caller may have aborted the request.
- cap_respected: 1 <= tokens <= max_tokens; a sample finished by `length` has exactly max_tokens and no stop id.
- spans_cover: the weight-version spans cover the tokens [0, len) without gap or overlap.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from siri_megatron.errors import EngineError
from siri_megatron.rollout.vllm_surface import ABORT as ABORT_ROUTE
from siri_megatron.rollout.vllm_surface import GENERATE as ROUTE

__all__ = ["ABORT_ROUTE", "ROUTE", "SERVED_MODEL", "Sample", "parse_answer", "request_body"]

SERVED_MODEL = "policy"
COMPACT = "application/msgpack"
"""What a client accepts that wants the answer in packed arrays (`engine/compact_answers`); parsed alike."""
ABORTED = "abort"
"""Finish reason of a response whose request was aborted: it has what was sampled until then, perhaps nothing."""

# vLLM sends -9999.0 where it has no log-prob for a sampled token; a real one of a sampled token is never so small.
MISSING_LOGPROB = -9000.0
# log-softmax in fp32 may round a certain token to a hair above zero.
LOGPROB_SLACK = 1e-5


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        token_ids: response tokens, the stop token included.
        logprobs: log-prob of each of them under the distribution it was sampled from (temperature applied).
        finish_reason: `stop` (a stop id ends it) or `length` (max_tokens reached); ABORTED if it is to go on.
        spans: `{"version", "start", "end"}`: weight versions the tokens [start, end) were sampled under.
        forced: [start, end) of tokens that were not sampled, but put there (`rollout.forced`); (0, 0): none.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    spans: list[dict[str, Any]]
    forced: tuple[int, int] = (0, 0)


def request_body(prompt_ids: Sequence[int], *, n: int, max_tokens: int, temperature: float, seed: int | None,
                 stop_ids: Sequence[int], top_p: float = 1.0, priority: int = 0) -> dict[str, Any]:
    """JSON body for `POST {engine}{ROUTE}`: `n` samples of one prompt.

    Sample i draws from its own stream, seeded by `seed + i` (vLLM's rule for n > 1): seeds of different requests
    must be at least n apart. `ignore_eos` leaves `stop_ids` as the only thing that ends a sample early, whatever
    the model's generation config says. `priority`: what waits is begun in this order, the smallest first, by an engine
    that schedules by priority (`engine_args`); others do not look at it.
    """
    sampling: dict[str, Any] = {
        "n": n, "max_tokens": max_tokens, "temperature": temperature, "logprobs": 0, "detokenize": False,
        "stop_token_ids": list(stop_ids), "ignore_eos": True,
    }
    if seed is not None:
        sampling["seed"] = seed
    if top_p < 1:
        sampling["top_p"] = top_p
    body = {"model": SERVED_MODEL, "token_ids": list(prompt_ids), "sampling_params": sampling}
    return body | ({"priority": priority} if priority else {})


REQUEST_ID = "X-Request-Id"


def engine_id(request_id: str) -> str:
    """What an engine calls a request whose header REQUEST_ID says `request_id`: its name for ABORT_ROUTE."""
    return f"generate-tokens-{request_id}"


def parse_answer(payload: object, *, n: int, max_tokens: int, stop_ids: Sequence[int],
                 aborted: bool = False) -> list[Sample]:
    """Check and convert the answer to a `request_body` of the same n, max_tokens and stop_ids.

    Args:
        aborted: the request may have been aborted.

    Raises:
        EngineError: the answer breaks an invariant of this module; says which, with the values.
    """
    choices = payload.get("choices") if isinstance(payload, Mapping) else None
    if not isinstance(choices, list):
        raise _bad(f"answer without a list of choices: {_short(payload)}", "one_sample_per_request")
    indices = [choice.get("index") if isinstance(choice, Mapping) else None for choice in choices]
    if sorted(indices, key=str) != sorted(range(n), key=str):
        raise _bad(f"choices {indices} came back for n={n}", "one_sample_per_request")
    ordered = sorted(choices, key=lambda choice: int(choice["index"]))
    stops = frozenset(stop_ids)
    return [_sample(choice, max_tokens, stops, aborted and choice.get("finish_reason") == ABORTED)
            for choice in ordered]


def _sample(choice: Mapping[str, Any], max_tokens: int, stops: frozenset[int], partial: bool) -> Sample:
    ids = _unpacked(choice.get("token_ids"), "i")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise _bad(f"token_ids are {_short(ids)}", "aligned")
    if partial and not ids:
        return Sample([], [], ABORTED, [])
    if not 1 <= len(ids) <= max_tokens:
        raise _bad(f"{len(ids)} tokens came back, max_tokens is {max_tokens}", "cap_respected")
    reason = choice.get("finish_reason")
    _check_ending(ids, reason, max_tokens, stops, partial)
    return Sample(ids, _logprobs(choice, ids), str(reason), _spans(choice, len(ids)))


def _unpacked(column: object, code: str) -> object:
    """A column of a compact answer as a list; anything else as it is."""
    if not isinstance(column, bytes):
        return column
    if len(column) % 4:
        raise _bad(f"a column of 4-byte numbers has {len(column)} bytes", "aligned")
    return array(code, column).tolist()


def _check_ending(ids: list[int], reason: object, max_tokens: int, stops: frozenset[int], partial: bool) -> None:
    if not stops.isdisjoint(ids[:-1]):
        raise _bad(f"a stop id of {sorted(stops)} stands inside {_short(ids)}", "stop_token_kept")
    if reason == "stop" and ids[-1] not in stops:
        raise _bad(f"finished by stop, yet the last token {ids[-1]} is none of {sorted(stops)}", "stop_token_kept")
    if reason == "length" and (ids[-1] in stops or len(ids) != max_tokens):
        raise _bad(f"finished by length with {len(ids)} tokens of {max_tokens}, the last being {ids[-1]}",
                   "cap_respected")
    if reason not in ("stop", "length") and not partial:
        raise _bad(f"finish_reason is {reason!r}", "a sample ends by stop or length; anything else is an abort")


def _logprobs(choice: Mapping[str, Any], ids: list[int]) -> list[float]:
    raw = choice.get("logprobs")
    if isinstance(raw, bytes):
        tokens, values = _unpacked(choice.get("logprob_ids"), "i"), cast("list[float]", _unpacked(raw, "f"))
    else:
        tokens, values = _entries(raw)
    if len(values) != len(ids):
        raise _bad(f"{len(ids)} tokens came with log-probs {_short(raw)}", "aligned")
    if tokens != ids:
        raise _bad(f"log-probs are for tokens {_short(tokens)}, the tokens are {_short(ids)}", "aligned")
    for value in values:
        if not (math.isfinite(value) and MISSING_LOGPROB < value <= LOGPROB_SLACK):
            raise _bad(f"a sampled token has log-prob {value}", "a sampled token has a finite log-prob <= 0")
    return values


def _entries(raw: object) -> tuple[list[int], list[float]]:
    """Ids and log-probs of vLLM's own form: an object a token."""
    content = raw.get("content") if isinstance(raw, Mapping) else None
    if not isinstance(content, list):
        raise _bad(f"log-probs are {_short(raw)}", "aligned")
    try:
        return [entry["token_id"] for entry in content], [float(entry["logprob"]) for entry in content]
    except (TypeError, KeyError, ValueError):
        raise _bad(f"a log-prob entry is not {{token_id, logprob}}: {_short(content)}", "aligned") from None


def _spans(choice: Mapping[str, Any], length: int) -> list[dict[str, Any]]:
    raw = choice.get("weight_versions")
    try:
        spans = [{"version": str(span["version"]), "start": int(span["start"]), "end": int(span["end"])}
                 for span in raw or ()]
    except (TypeError, KeyError, ValueError):
        raise _bad(f"weight versions are {_short(raw)}", "spans_cover") from None
    edges = [0, *(span["end"] for span in spans)]
    starts = [*(span["start"] for span in spans), length]
    if edges != starts or not spans:
        raise _bad(f"spans {_short(raw)} do not cover {length} tokens", "spans_cover")
    return spans


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _bad(what: str, rule: str) -> EngineError:
    return EngineError(f"engine answered wrongly: {what}", rule=rule,
                       fix="check that the engine is the vLLM release of the lock file; its log has more")
