"""What is asked of an engine, and what comes back. Pure.

Invariants:
    own_weights: an answer is taken only if every token of it was sampled under the weights asked for, or under weights
        that are at most `Request.lag` older.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from siri_megatron.budget.admission import allowed
from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import Sample, parse_answer, request_body

Home = tuple[str, int]
"""(job, group): what is routed together."""


@dataclass(frozen=True)
class Request:
    """`n` samples of one prompt.

    Attributes:
        group, job: requests of one group of one job stay on one engine.
        lag: weight versions older than the one asked for that it may be sampled under (then also partly).
        priority: what waits within an engine is begun in this order, the smallest number first.
    """

    group: int
    prompt_ids: Sequence[int]
    n: int
    max_tokens: int
    temperature: float
    seed: int | None
    stop_ids: Sequence[int]
    top_p: float = 1.0
    job: str = ""
    lag: int = 0
    priority: int = 0

    @property
    def home(self) -> Home:
        return self.job, self.group

    def accepts(self, found: str, version: str) -> bool:
        """May it be sampled under the weights `found`, when `version` was asked for?"""
        if found == version or not self.lag:
            return found == version
        return found.isdecimal() and allowed(int(version), int(found), self.lag)

    @property
    def tokens(self) -> int:
        """The most tokens it may produce."""
        return self.n * self.max_tokens

    def body(self) -> bytes:
        return msgspec.json.encode(request_body(
            self.prompt_ids, n=self.n, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed,
            stop_ids=self.stop_ids, top_p=self.top_p, priority=self.priority))

    def parse(self, payload: object, *, aborted: bool = False) -> list[Sample]:
        return parse_answer(payload, n=self.n, max_tokens=self.max_tokens, stop_ids=self.stop_ids, aborted=aborted)


@dataclass(frozen=True)
class Answer:
    samples: list[Sample]
    engine: int
    """Index of the engine that answered."""
    seconds: float
    """From sending the request to the parsed answer."""


def check_versions(samples: Sequence[Sample], request: Request, version: str, url: str) -> None:
    """Refuse samples of other weights than the ones asked for.

    Raises:
        EngineError: names the engine and both versions.
    """
    found = {span["version"] for sample in samples for span in sample.spans}
    if not all(request.accepts(one, version) for one in found):
        older = f" or at most {request.lag} older" if request.lag else ""
        raise EngineError(f"{url} sampled under weight version {', '.join(sorted(found))}, expected {version}{older}",
                          rule="a step's rollouts come from the weights pushed for it, or from those of rollout.lag "
                               "steps before",
                          fix="push the weights to every engine before collecting")
