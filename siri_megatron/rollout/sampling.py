"""Sampling seeds of reproducible runs. Pure.

Invariants:
    apart: the seed ranges [seed, seed + SEED_STRIDE) of two requests are equal or disjoint, so the streams of their
        samples (sample i draws from seed + i) never overlap by a shift.
    fits: 0 <= seed < 2**63, which every engine takes.
    everything_counts: another run seed, purpose, place or prompt gives another seed (collisions: 2**-51 a pair).
"""

from __future__ import annotations

import hashlib

SEED_STRIDE = 4096
"""More samples of one prompt than any request asks for."""
_BITS = 51


def request_seed(run_seed: int, purpose: str, place: int, prompt_id: str) -> int:
    """Seed of one request.

    Args:
        purpose: what the samples are for, e.g. `step-12` or `evaluation`.
        place: position of the request within it; a prompt that occurs twice gets two seeds.
    """
    name = f"{run_seed}/{purpose}/{place}/{prompt_id}"
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return (digest >> (64 - _BITS)) * SEED_STRIDE
