"""Responses that stopped before their end: how they go on, or are closed. Pure.

    aborted after m tokens ─► m < cap: asked on from there, at most cap - m more ─► joined to one response
                        └───► m >= cap: closed as truncated at the cap; nothing is asked

A response cut at a smaller cap is what sampling under that cap would have given, since sampling is causal.

Invariants:
    charged: what a response has counts against its cap; it never gets a fresh one (slime#2260, verl PR#7207), so prompt
        and response together never pass the context that the cap was checked against.
    never_negative: a response that has its cap already asks for nothing (others assert there when a cap is lowered).
    joined_is_one: tokens, log-probs and weight-version spans of the parts follow one another without gap or overlap.
"""

from __future__ import annotations

from dataclasses import replace

from siri_megatron.rollout.engine_api import ABORTED, Sample
from siri_megatron.rollout.request import Request


def rest_of(request: Request, partial: Sample, cap: int) -> Request | None:
    """What is still to be sampled of a response under a cap; None if it has ended, or has its cap.

    It has no seed: the stream of an aborted response cannot be taken up again.
    """
    left = cap - len(partial.token_ids)
    if partial.finish_reason != ABORTED or left <= 0:
        return None
    return replace(request, prompt_ids=(*request.prompt_ids, *partial.token_ids), n=1, max_tokens=left, seed=None)


def joined(first: Sample, second: Sample) -> Sample:
    """A partial response and what followed it."""
    start = len(first.token_ids)
    spans = [span | {"start": span["start"] + start, "end": span["end"] + start} for span in second.spans]
    if first.spans and spans and first.spans[-1]["version"] == spans[0]["version"]:
        spans[0] = spans[0] | {"start": first.spans[-1]["start"]}
        spans = [*first.spans[:-1], *spans]
    else:
        spans = [*first.spans, *spans]
    tokens, logprobs = [*first.token_ids, *second.token_ids], [*first.logprobs, *second.logprobs]
    return Sample(tokens, logprobs, second.finish_reason, spans)


def closed(sample: Sample, cap: int) -> Sample:
    """A response as it is under a cap: one that goes beyond, or was aborted there, is truncated at it."""
    size = len(sample.token_ids)
    if size < cap or (size == cap and sample.finish_reason != ABORTED):
        return sample
    spans = [span | {"end": min(span["end"], cap)} for span in sample.spans if span["start"] < cap]
    return Sample(sample.token_ids[:cap], sample.logprobs[:cap], "length", spans)
