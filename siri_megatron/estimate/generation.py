"""How long engines take to sample the rollouts of a step. Pure.

An engine decodes in rounds: each gives one token to every sequence that runs. A round takes

    round + max(weights, n x token) + kv x context         n sequences, kv tokens of context in all

- on a GPU the weights are read once a round, the KV cache once a sequence, and the products of n tokens hide behind the
weights until n is large. Sequences start in order as soon as a place is free (`max_num_seqs`) and the KV cache has room
for their whole length; the engine is asked for nothing twice, so preemption is left out. Between two ends n is constant
and kv grows by n a round, so the seconds of k rounds have a closed form, and only ends are visited.

Invariants:
- as_the_loop: the seconds are those of the loop that visits every round.
- more_tokens_never_faster, more_engines_never_slower, more_places_never_slower (the last without context cost: reading
  longer contexts together can cost more than it saves).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from siri_megatron.estimate.rates import Rates
from siri_megatron.estimate.work import ModelWork


@dataclass(frozen=True)
class Decoding:
    """Costs of one engine, seconds."""

    round_s: float
    weights_s: float
    """Reading all weights."""
    token_s: float
    """Matrix products of one token."""
    context_s: float
    """One token of context in a round."""
    sequence_s: float
    """Fixed, when a sequence starts."""
    prompt_token_s: float
    """Reading one prompt token."""

    @classmethod
    def of(cls, work: ModelWork, rates: Rates, gpus: int) -> Decoding:
        """gpus: of one engine; they share the weights and the KV cache."""
        context = work.context_bytes * rates.context_byte_s + work.context_flops * rates.decode_flop_s
        token_s = work.token_flops * rates.decode_flop_s / gpus
        return cls(rates.round_s, work.weight_bytes * rates.weight_byte_s / gpus, token_s, context / gpus,
                   rates.sequence_s, 2.0 * work.layers * work.layer_weights * rates.decode_flop_s / gpus)


@dataclass(frozen=True)
class Request:
    """A sequence as an engine sees it."""

    prompt: int
    response: int
    cached: bool = False
    """Another sample of its group has brought the prompt into the KV cache."""


@dataclass(frozen=True)
class EngineWork:
    """What one engine did."""

    seconds: float
    rounds: int
    tokens: int
    prompt_tokens: int
    """That were computed."""
    sequences: int
    context: int
    """Sum over rounds of the tokens of context."""


def decode(requests: Sequence[Request], costs: Decoding, *, places: int, room: float = float("inf")) -> EngineWork:
    """One engine, from the first prompt to the last token.

    Args:
        places: sequences that run at once.
        room: tokens that the KV cache holds; a sequence longer than it runs alone.
    """
    ends: list[tuple[int, int, int]] = []  # (round of the last token, number, tokens reserved)
    now = kv = held = started = 0
    seconds, context = 0.0, 0
    while started < len(requests) or ends:
        while started < len(requests) and len(ends) < places:
            request = requests[started]
            size = request.prompt + request.response
            if ends and held + size > room:
                break
            heapq.heappush(ends, (now + request.response, started, size))
            started, kv, held = started + 1, kv + request.prompt, held + size
        rounds, running = ends[0][0] - now, len(ends)
        read = rounds * kv + running * rounds * (rounds + 1) // 2
        seconds += rounds * (costs.round_s + max(costs.weights_s, running * costs.token_s)) + read * costs.context_s
        context, kv, now = context + read, kv + running * rounds, now + rounds
        while ends and ends[0][0] == now:
            _, _, size = heapq.heappop(ends)
            kv, held = kv - size, held - size
    prompts = sum(request.prompt for request in requests if not request.cached)
    seconds += prompts * costs.prompt_token_s + len(requests) * costs.sequence_s
    return EngineWork(seconds, now, sum(request.response for request in requests), prompts, len(requests), context)


def share_out(groups: Sequence[Sequence[Request]], engines: int) -> list[list[Request]]:
    """Requests of each engine: whole groups in turn, which is what the router does with groups of equal cap."""
    return [[request for group in groups[engine::engines] for request in group] for engine in range(engines)]


def generate(groups: Sequence[Sequence[Request]], costs: Decoding, *, engines: int, places: int,
             room: float = float("inf")) -> EngineWork:
    """The engine that is done last."""
    return max((decode(requests, costs, places=places, room=room) for requests in share_out(groups, engines)),
               key=lambda work: work.seconds)
