"""How long engines take to sample the rollouts of a step. Pure.

An engine decodes in rounds: each gives one token to every sequence that runs. A round takes

    round + max(weights, n x token) + kv x context         n sequences, kv tokens of context in all

- on a GPU the weights are read once a round, the KV cache once a sequence, and the products of n tokens hide behind the
weights until n is large. Sequences start in order as soon as a place is free (`max_num_seqs`) and the KV cache has room
for their prompt. When the cache is full the newest sequence is preempted, as vLLM does: it waits at the front, and what
it has generated is read again like a prompt. Between two ends n is constant and kv grows by n a round, so the seconds
of k rounds have a closed form, and only ends are visited.

Invariants:
- as_the_loop: the seconds are those of the loop that visits every round.
- more_tokens_never_faster, as long as the cache is never full.
- more_engines_never_slower, where k times as many share the groups out.
- every_token_once: with a full cache too, each sequence generates as many tokens as it was asked for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    engine = _Engine(deque(enumerate(requests)), places, room)
    seconds = 0.0
    while engine.waiting or engine.running:
        engine.admit()
        rounds, running = engine.rounds(), len(engine.running)
        read = rounds * engine.kv + running * rounds * (rounds + 1) // 2
        seconds += rounds * (costs.round_s + max(costs.weights_s, running * costs.token_s)) + read * costs.context_s
        engine.advance(rounds, read)
    seconds += engine.prompts * costs.prompt_token_s + len(requests) * costs.sequence_s
    return EngineWork(seconds, engine.now, sum(request.response for request in requests), engine.prompts,
                      len(requests), engine.context)


@dataclass
class _Engine:
    """State of an engine between two rounds."""

    waiting: deque[tuple[int, Request]]
    places: int
    room: float
    running: dict[int, tuple[int, Request]] = field(default_factory=dict)
    """Number -> (round at which it started, request), oldest first."""
    ends: list[tuple[int, int]] = field(default_factory=list)
    """Heap of (round of the last token, number); with those of sequences that were preempted since."""
    now: int = 0
    kv: int = 0
    prompts: int = 0
    context: int = 0
    full: bool = False
    """A sequence was preempted just now: nothing starts in this round."""

    def admit(self) -> None:
        while self.waiting and not self.full and len(self.running) < self.places:
            number, request = self.waiting[0]
            if self.running and self.kv + request.prompt + len(self.running) + 1 > self.room:
                break
            self.waiting.popleft()
            self.running[number] = self.now, request
            heapq.heappush(self.ends, (self.now + request.response, number))
            self.kv += request.prompt
            self.prompts += 0 if request.cached else request.prompt
        self.full = False

    def rounds(self) -> int:
        """Rounds until a sequence ends or the cache is full; at least one."""
        while (end := self._end()) is None:
            heapq.heappop(self.ends)
        left = end - self.now
        return int(left if len(self.running) == 1 else min(left, max(1, (self.room - self.kv) // len(self.running))))

    def advance(self, rounds: int, read: int) -> None:
        self.now, self.kv, self.context = self.now + rounds, self.kv + rounds * len(self.running), self.context + read
        while self.ends and self._end() in (None, self.now):
            if self._end() is not None:
                _, request = self.running.pop(self.ends[0][1])
                self.kv -= request.prompt + request.response
            heapq.heappop(self.ends)
        while len(self.running) > 1 and self.kv + len(self.running) > self.room:
            self._preempt()

    def _end(self) -> int | None:
        """Round at which the next sequence ends; None if that one was preempted."""
        end, number = self.ends[0]
        started, request = self.running.get(number, (-1, Request(0, 0)))
        return end if started + request.response == end else None

    def _preempt(self) -> None:
        number, (started, request) = self.running.popitem()
        made = self.now - started
        self.kv -= request.prompt + made
        self.waiting.appendleft((number, Request(request.prompt + made, request.response - made)))
        self.full = True


def share_out(groups: Sequence[Sequence[Request]], engines: int) -> list[list[Request]]:
    """Requests of each engine: whole groups in turn, which is what the router does with groups of equal cap."""
    return [[request for group in groups[engine::engines] for request in group] for engine in range(engines)]


def generate(groups: Sequence[Sequence[Request]], costs: Decoding, *, engines: int, places: int,
             room: float = float("inf")) -> EngineWork:
    """The engine that is done last."""
    return max((decode(requests, costs, places=places, room=room) for requests in share_out(groups, engines)),
               key=lambda work: work.seconds)
