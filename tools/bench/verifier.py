"""Answers a second of the math verifier: `make bench` (or `python tools/bench/verifier.py [--answers N]`).

For each kind of answer: distinct pairs judged by math-verify in this process, and the same pairs through the verifier
with its worker processes; the ratio is what isolation leaves. `step` is what a training step sends (groups of 8,
many alike, most right ones letter by letter): pairs that are known cost nothing. `hostile` adds texts that are refused
unseen or killed at the deadline (no figure in this process: it would never end).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.math import MathVerifier, compare, prepare_worker
from siri_megatron.reward.workers import Limits

GROUP = 8
DEADLINE_S = 1.0
TARGET = 0.8
"""Smallest ratio of isolated to in-process answers a second, a worker."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Options:
    answers: int = 200
    workers: int = 1


def short(count: int, rng: random.Random) -> list[Pair]:
    """Numbers and fractions, half of them right but never letter by letter."""
    pairs = []
    for at in range(count):
        top, below = rng.randint(1, 10**6), rng.randint(2, 99)
        pairs.append((rf"\frac{{{top}}}{{{below}}}",
                      rf"\boxed{{\frac{{{2 * top + at % 2}}}{{{2 * below}}}}}"))
    return pairs


def long(count: int, rng: random.Random) -> list[Pair]:
    """Polynomials of 8 terms, reordered; every other one has another constant. A quarter as many."""
    pairs = []
    for at in range(max(2, count // 4)):
        terms = [f"{rng.randint(2, 999)}x^{{{power}}}" for power in range(1, 8)]
        constant = rng.randint(1, 999)
        pairs.append(("+".join([*terms, str(constant)]),
                      rf"\boxed{{{'+'.join([str(constant + at % 2), *reversed(terms)])}}}"))
    return pairs


def mixed(count: int, rng: random.Random) -> list[Pair]:
    """Nine short ones on a long one."""
    pairs = short(count - count // 10, rng) + long(4 * (count // 10), rng)
    rng.shuffle(pairs)
    return pairs


def step(count: int, rng: random.Random) -> list[Pair]:
    """Groups of 8: half of the samples give the reference letter by letter, the others one of two wrong answers."""
    pairs = []
    for _ in range(count // GROUP):
        value = rng.randint(100, 10**6)
        said = [str(value)] * (GROUP // 2) + [str(value + rng.randint(1, 2)) for _ in range(GROUP - GROUP // 2)]
        pairs += [(str(value), rf"\boxed{{{answer}}}") for answer in said]
    return pairs


def hostile(count: int, rng: random.Random) -> list[Pair]:
    """Short ones; one in 20 is a tower of powers (refused), one in 100 a product that never ends (killed)."""
    pairs = short(count, rng)
    for at in range(0, count, 20):
        pairs[at] = ("7", rf"\boxed{{9^{{9^{{9^{{{at + 9}}}}}}}}}")
    for at in range(50, count, 100):
        pairs[at] = ("7", rf"\boxed{{\prod_{{n=1}}^{{{100000 + at}}} (x+n)}}")
    return pairs


KINDS = {"short": short, "long": long, "mixed": mixed, "step": step, "hostile": hostile}


def in_process(pairs: Sequence[Pair]) -> float:
    """Answers a second of math-verify without isolation."""
    begun = time.perf_counter()
    for reference, answer in pairs:
        compare(reference, answer)
    return len(pairs) / (time.perf_counter() - begun)


async def isolated(verifier: MathVerifier, pairs: Sequence[Pair]) -> float:
    """Answers a second of the verifier."""
    begun = time.perf_counter()
    await asyncio.gather(*(verifier.judge(Prompt("p", "?", (1,), reference), answer) for reference, answer in pairs))
    return len(pairs) / (time.perf_counter() - begun)


def measure(options: Options) -> dict[str, dict[str, float | None]]:
    """kind -> answers a second in this process and isolated (a worker), and their ratio."""
    prepare_worker()
    warm = long(16 * options.workers, random.Random(0))  # imports, and the tables of the parser
    in_process(warm)
    found: dict[str, dict[str, float | None]] = {}
    with asyncio.Runner() as runner:
        verifier = MathVerifier(None, "all", Limits(options.workers, DEADLINE_S, 2 << 30))  # type: ignore[arg-type]
        runner.run(isolated(verifier, warm))
        for kind, make in KINDS.items():
            pairs = make(options.answers, random.Random(kind))
            bare = None if kind == "hostile" else in_process(pairs)
            apart = runner.run(isolated(verifier, pairs)) / options.workers
            found[kind] = {"in_process_per_s": bare, "isolated_per_s": apart, "ratio": apart / bare if bare else None}
        runner.run(verifier.close())
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=Options.answers, help="pairs of each kind")
    parser.add_argument("--workers", type=int, default=Options.workers, help="worker processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    found = measure(Options(given.answers, given.workers))
    if given.json:
        print(json.dumps(found))
        return 0
    for kind, row in found.items():
        bare = "       -" if row["in_process_per_s"] is None else f"{row['in_process_per_s']:8.0f}"
        ratio = "" if row["ratio"] is None else f"   ratio {row['ratio']:.2f}"
        print(f"{kind:8} in process {bare} answers/s   isolated {row['isolated_per_s']:8.0f} answers/s a worker{ratio}")
    print(f"verifier: isolation leaves {found['mixed']['ratio']:.2f} of the bare speed (target >= {TARGET})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
