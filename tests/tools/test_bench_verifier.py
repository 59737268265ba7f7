"""The verifier's benchmark: its pairs are what they say, and it runs from end to end. No assertion on time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
import verifier as bench

from siri_megatron.reward.limits import hopeless
from siri_megatron.reward.math import compare, same_text


@pytest.mark.parametrize("kind", ["short", "long", "mixed"])
def test_pairs_are_distinct_and_half_right(kind: str) -> None:
    pairs = bench.KINDS[kind](16, random.Random(3))
    assert len(set(pairs)) == len(pairs)
    assert not any(same_text(*pair) or hopeless(pair[1]) for pair in pairs)
    assert 0.4 <= sum(compare(*pair) for pair in pairs) / len(pairs) <= 0.6


def test_steps_repeat_themselves_and_hostile_ones_are_refused() -> None:
    pairs = bench.step(64, random.Random(3))
    assert len(pairs) == 64
    assert len(set(pairs)) <= 24
    assert sum(same_text(*pair) for pair in pairs) == 32
    assert sum(hopeless(answer) is not None for _, answer in bench.hostile(100, random.Random(3))) == 5


def test_runs_from_end_to_end() -> None:
    done = subprocess.run([sys.executable, bench.__file__, "--answers", "16", "--json"], capture_output=True, text=True,
                          check=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(bench.KINDS)
    for kind, row in found.items():
        assert set(row) == {"in_process_per_s", "isolated_per_s", "ratio"}
        assert row["isolated_per_s"] > 0
        assert (row["ratio"] is None) == (kind == "hostile")
