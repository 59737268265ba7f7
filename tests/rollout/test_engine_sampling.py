"""What a real engine promises about sampling. Exact resume rests on the batch invariance tested here.

What holds on CPU in fp32 (vLLM 0.32, oneDNN, x86-64 with AVX-512; for several threads an engine see
test_attention_bits): a seeded request gives the same tokens and the same log-probs, bit for bit, on either engine,
alone or among others. vLLM does not promise it, and nobody has tried other processors, dtypes or tensor-parallel
engines: where this test fails, a resumed run equals one that never stopped only in distribution.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from engine_fleet import EngineFleet

from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.rollout.engine_api import Sample

pytestmark = pytest.mark.engine

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9=", "b4c4d4e4f4=", "a1b2=", "a5b5c5d5e5f5g5=", "c7=")]


def crowd(engines: EngineFleet, engine: int, n: int = 8) -> list[list[Sample]]:
    """All prompts at once, n samples each."""
    def one(i: int) -> list[Sample]:
        return engines.sample(engine, PROMPTS[i], n=n, max_tokens=48, seed=1000 * i)

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(one, range(len(PROMPTS))))


def tokens(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.token_ids for sample in group] for group in groups]


def largest_difference(one: list[list[Sample]], other: list[list[Sample]]) -> float:
    return max(abs(a - b) for group, twin in zip(one, other, strict=True) for x, y in zip(group, twin, strict=True)
               for a, b in zip(x.logprobs, y.logprobs, strict=True))


def test_same_seed_same_sample_on_every_engine(engines: EngineFleet) -> None:
    first, second = crowd(engines, 0), crowd(engines, 1)
    assert tokens(first) == tokens(second)
    assert largest_difference(first, second) == 0.0


def test_batch_invariance(engines: EngineFleet) -> None:
    """A seeded request gives the same tokens and the same bits of log-prob alone as among 47 others."""
    together = crowd(engines, 0)
    alone = [engines.sample(0, prompt, n=8, max_tokens=48, seed=1000 * i) for i, prompt in enumerate(PROMPTS)]
    single = [[engines.sample(0, prompt, n=1, max_tokens=48, seed=1000 * i + j)[0] for j in range(8)]
              for i, prompt in enumerate(PROMPTS)]
    assert tokens(alone) == tokens(together)
    assert tokens(single) == tokens(together)
    assert largest_difference(alone, together) == 0.0
    assert largest_difference(single, together) == 0.0


def test_more_prompts_than_an_engine_step_holds(engines: EngineFleet) -> None:
    """64 seeded samples of 60 prompt tokens are more than the 2,048 of a step: a prefill in parts ends vLLM's CPU
    engine ("CPU Generator does not use offset")."""
    long = [PROMPTS[0][at % len(PROMPTS[0])] for at in range(60)]
    crowded = engines.sample(0, long, n=64, max_tokens=8, seed=7)
    assert [sample.token_ids for sample in crowded[:2]] == [
        sample.token_ids for sample in engines.sample(0, long, n=2, max_tokens=8, seed=7)]


def test_other_seeds_give_other_samples(engines: EngineFleet) -> None:
    """Negative control of the two above; and sample i of a seeded request has seed + i."""
    [one, two] = engines.sample(0, PROMPTS[0], n=2, max_tokens=48, seed=5)
    [shifted] = engines.sample(0, PROMPTS[0], n=1, max_tokens=48, seed=6)
    assert one.token_ids != two.token_ids
    assert two.token_ids == shifted.token_ids


def test_stop_ids_end_a_sample_and_are_kept(engines: EngineFleet) -> None:
    free = engines.sample(0, PROMPTS[0], n=8, max_tokens=40, seed=3)
    stop = free[0].token_ids[20]
    for whole, cut in zip(free, engines.sample(0, PROMPTS[0], n=8, max_tokens=40, seed=3, stop_ids=[stop]),
                          strict=True):
        if stop in whole.token_ids:
            end = whole.token_ids.index(stop) + 1
            assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:end], "stop")
            assert len(cut.logprobs) == end
        else:
            assert (cut.token_ids, cut.finish_reason) == (whole.token_ids, "length")


def test_the_models_own_eos_does_not_end_a_sample(engines: EngineFleet) -> None:
    """Only the stop ids sent with a request count, whatever the model directory says."""
    from siri_megatron.data.digit_tokenizer import EOS_ID

    samples = engines.sample(0, PROMPTS[1], n=32, max_tokens=64, seed=11)
    assert any(EOS_ID in sample.token_ids[:-1] for sample in samples)
    assert all(len(sample.token_ids) == 64 for sample in samples)
