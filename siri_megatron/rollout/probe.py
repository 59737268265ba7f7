"""Do the engines compute what the learner computes? A few sequences, scored by both after a push. Pure.

Every engine answers the same prompts (random tokens: any model has some) and says the log-probs of its tokens; the
learner scores the same tokens. Equal weights differ by the rounding of the dtype; a tensor that was not pushed, or a
shard in the wrong place, by much more.

Invariants:
- same_prompts: the prompts depend on the vocabulary alone, so probes of one run can be compared.
- worst_engine_decides: a report is as bad as its worst engine; that engine is named.
- version_counts: an answer sampled under another version than the one pushed is refused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import Sample, parse_answer, request_body

PROMPTS = 4
PROMPT_TOKENS = ANSWER_TOKENS = 16
"""Together no more than the smallest context, 32 tokens."""
SEED = 20_259


def prompts(vocab: int) -> list[list[int]]:
    """Token ids of the prompts."""
    draw = random.Random(SEED)
    return [[draw.randrange(vocab) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]


def requests(vocab: int, temperature: float) -> list[dict[str, Any]]:
    """What each engine is asked."""
    return [request_body(prompt, n=1, max_tokens=ANSWER_TOKENS, temperature=temperature, seed=SEED + number,
                         stop_ids=()) for number, prompt in enumerate(prompts(vocab))]


@dataclass(frozen=True)
class EngineDifference:
    """|engine - learner| of the log-probs of one engine's answers, nats."""

    engine: str
    mean: float
    largest: float


@dataclass(frozen=True)
class ProbeReport:
    """A probe of the whole fleet."""

    version: str
    engines: tuple[EngineDifference, ...]

    @property
    def worst(self) -> EngineDifference:
        return max(self.engines, key=lambda one: (math.isnan(one.mean), one.mean))

    @property
    def sentence(self) -> str:
        return (f"engines and learner differ by {self.worst.mean:.1e} nats on average in the worst of "
                f"{len(self.engines)} engines ({self.worst.engine})")

    @property
    def metrics(self) -> dict[str, float]:
        return {"probe_mean_abs": self.worst.mean, "probe_max_abs": max(one.largest for one in self.engines)}


def parse(engine: str, payloads: Sequence[object], version: str) -> list[Sample]:
    """An engine's answers to `requests`, one sample each.

    Raises:
        EngineError: an answer is malformed, or was sampled under another version.
    """
    samples = [parse_answer(payload, n=1, max_tokens=ANSWER_TOKENS, stop_ids=())[0] for payload in payloads]
    check_version(engine, samples, version)
    return samples


def check_version(engine: str, samples: Sequence[Sample], version: str) -> None:
    """Raise EngineError unless every token was sampled under `version`."""
    if other := {span["version"] for sample in samples for span in sample.spans} - {version}:
        raise EngineError(f"{engine} answered a probe of weight version {version!r} under {sorted(other)}",
                          rule="after a push an engine serves the version that was pushed", fix="look into its log")


def compare(version: str, engines: Sequence[str], theirs: Sequence[Sequence[Sequence[float]]],
            ours: Sequence[Sequence[Sequence[float]]]) -> ProbeReport:
    """Differences of the log-probs, [engine][answer][token]."""
    found = []
    for name, engine, learner in zip(engines, theirs, ours, strict=True):
        gaps = [abs(x - y) for one, other in zip(engine, learner, strict=True)
                for x, y in zip(one, other, strict=True)]
        found.append(EngineDifference(name, sum(gaps) / len(gaps), max(gaps)))
    return ProbeReport(version, tuple(found))


def check_bound(report: ProbeReport, bound: float) -> None:
    """Raise EngineError if an engine's mean difference is above the bound, or is no number."""
    if not report.worst.mean <= bound:  # so that no number is above every bound
        others = ", ".join(f"{one.engine}: {one.mean:.2g} (largest {one.largest:.2g})" for one in report.engines)
        raise EngineError(f"{report.worst.engine} has log-probs that differ by {report.worst.mean:.3g} nats on average "
                          f"from the learner's of the same weights (version {report.version}), "
                          f"push.probe_bound={bound:g}. All engines: {others}",
                          rule="engine and learner compute the same log-probs from the same weights",
                          fix="check model.dtype and engines.extra_args (quantisation, another attention back end); "
                              "raise push.probe_bound if rounding of the dtype is all that differs")
