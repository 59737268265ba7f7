"""Decoding against a loop that visits every round."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.estimate.generation import Decoding, Request, decode, generate, share_out

COSTS = Decoding(round_s=3.0, weights_s=2.0, token_s=0.5, context_s=0.01, sequence_s=0.2, prompt_token_s=0.05)
requests = st.lists(st.builds(Request, prompt=st.integers(1, 9), response=st.integers(1, 40)), min_size=1, max_size=12)
groups = st.lists(requests, min_size=1, max_size=9)


def every_round(asked: list[Request], costs: Decoding, places: int, room: float) -> tuple[float, int, list[int]]:
    """(seconds, rounds, tokens made of each request)"""
    waiting = [[number, request.prompt, request.response, request.cached] for number, request in enumerate(asked)]
    running: list[list[int]] = []
    seconds, rounds, made, full = len(asked) * costs.sequence_s, 0, [0] * len(asked), False
    while waiting or running:
        while waiting and not full and len(running) < places:
            number, context, left, cached = waiting[0]
            if running and sum(one[1] for one in running) + context + len(running) + 1 > room:
                break
            waiting.pop(0)
            running.append([number, context, left])
            seconds += 0 if cached else context * costs.prompt_token_s
        full = False
        for one in running:
            one[1] += 1
            one[2] -= 1
            made[one[0]] += 1
        read = sum(one[1] for one in running)
        seconds += costs.round_s + max(costs.weights_s, len(running) * costs.token_s) + read * costs.context_s
        rounds += 1
        running = [one for one in running if one[2]]
        while len(running) > 1 and sum(one[1] for one in running) + len(running) > room:
            number, context, left = running.pop()
            waiting.insert(0, [number, context, left, False])
            full = True
    return seconds, rounds, made


@pytest.mark.parametrize("seed", range(60))
def test_as_the_loop(seed: int) -> None:
    draw = random.Random(seed)
    asked = [Request(draw.randint(1, 9), draw.randint(1, 40), draw.random() < 0.3) for _ in range(draw.randint(1, 14))]
    costs = Decoding(*(draw.random() for _ in range(6)))
    places, room = draw.randint(1, 8), draw.choice([math.inf, draw.randint(20, 150)])
    work = decode(asked, costs, places=places, room=room)
    seconds, rounds, made = every_round(asked, costs, places, room)
    assert made == [request.response for request in asked]
    assert (work.seconds, work.rounds) == (pytest.approx(seconds), rounds)
    assert work.tokens == sum(made)


def test_negative_control_contexts_grow() -> None:
    asked = [Request(4, 30), Request(4, 10)]
    still = sum(request.response * (request.prompt + 1) for request in asked)
    assert decode(asked, COSTS, places=2).context > 2 * still


def test_full_cache_preempts_and_costs() -> None:
    asked = [Request(5, 50) for _ in range(6)]
    roomy, tight = decode(asked, COSTS, places=6), decode(asked, COSTS, places=6, room=100)
    assert tight.seconds > roomy.seconds
    assert tight.prompt_tokens > roomy.prompt_tokens == 30
    assert tight.tokens == roomy.tokens


@given(requests, st.integers(1, 12), st.data())
def test_more_tokens_never_faster(asked: list[Request], places: int, data: st.DataObject) -> None:
    longer = data.draw(st.integers(0, len(asked) - 1))
    more = [replace(request, response=request.response + 5 * (number == longer))
            for number, request in enumerate(asked)]
    assert decode(more, COSTS, places=len(asked)).seconds > decode(asked, COSTS, places=len(asked)).seconds
    assert decode([*asked, asked[0]], COSTS, places=places).tokens > decode(asked, COSTS, places=places).tokens


@given(groups, st.integers(1, 3), st.integers(2, 3))
def test_more_engines_never_slower(asked: list[list[Request]], engines: int, times: int) -> None:
    fewer = generate(asked, COSTS, engines=engines, places=200)
    assert generate(asked, COSTS, engines=engines * times, places=200).seconds <= fewer.seconds * (1 + 1e-12)


@given(groups, st.integers(1, 5))
def test_groups_are_shared_out_once(asked: list[list[Request]], engines: int) -> None:
    shares = share_out(asked, engines)
    assert len(shares) == engines
    assert Counter(chain(*shares)) == Counter(chain(*asked))


def test_weights_or_products_whichever_is_slower() -> None:
    few, many = ([Request(1, 10)] * count for count in (2, 40))
    costs = replace(COSTS, context_s=0.0, sequence_s=0.0, prompt_token_s=0.0)
    assert decode(few, costs, places=99).seconds == pytest.approx(10 * (3.0 + 2.0))
    assert decode(many, costs, places=99).seconds == pytest.approx(10 * (3.0 + 20.0))
