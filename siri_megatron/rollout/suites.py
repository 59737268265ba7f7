"""Which questions an evaluation asks, how often, and at which settings. Pure.

Invariants of `admitted`:
    within: what is asked may produce at most `limit` tokens, however long every answer becomes.
    prefix: of each suite the first questions are asked, so that a larger limit asks these and more.
    fair: suites take turns; one that is asked less has run out of questions, or of room.
    before_sending: a function of the settings alone, never of what an answer happens to cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from siri_megatron.config import EvalConfig, SuiteConfig
from siri_megatron.config.evaluation import OWN
from siri_megatron.errors import ConfigError

if TYPE_CHECKING:
    from siri_megatron.data.prompts import Prompt, PromptSet


@dataclass(frozen=True)
class Suite:
    """A set of questions with its settings.

    Attributes:
        prompts: the questions that are asked.
        left_out: further ones, for which `evaluation.max_tokens` has no room.
        fingerprint: of all the questions.
        samples: answers a question; 1 when decoding is greedy, which gives the same answer every time.
    """

    name: str
    prompts: Sequence[Prompt]
    left_out: int
    fingerprint: str
    samples: int
    budgets: tuple[int, ...]
    temperature: float
    top_p: float

    def sentence(self) -> str:
        """What `evaluation.max_tokens` leaves out, for people; empty if nothing."""
        total = len(self.prompts) + self.left_out
        return f"; evaluation.max_tokens leaves out {self.left_out} of {total}" if self.left_out else ""


def suites_of(config: EvalConfig, sets: Mapping[str, PromptSet]) -> list[Suite]:
    """The suites of an evaluation; the first one's results head the report.

    Args:
        sets: the questions by suite, in order.

    Raises:
        ConfigError: `evaluation.max_tokens` has no room for one question of each suite.
    """
    settings: dict[str, EvalConfig | SuiteConfig] = {OWN: config, **{suite.name: suite for suite in config.suites}}
    whole = [_whole(name, settings[name], prompts, config) for name, prompts in sets.items()]
    costs = [suite.samples * max(suite.budgets) for suite in whole]
    asked = admitted(costs, [len(suite.prompts) for suite in whole], config.max_tokens)
    if not all(asked):
        raise ConfigError(f"evaluation.max_tokens={config.max_tokens}, and one question of each suite may take "
                          f"{sum(costs)}", rule="a question may take samples x its largest budget",
                          fix=f"raise evaluation.max_tokens to {sum(costs)} or more, or lower samples or budgets")
    return [replace(suite, prompts=suite.prompts[:count], left_out=len(suite.prompts) - count)
            for suite, count in zip(whole, asked, strict=True)]


def _whole(name: str, own: EvalConfig | SuiteConfig, prompts: PromptSet, shared: EvalConfig) -> Suite:
    temperature = shared.temperature if own.temperature is None else own.temperature
    return Suite(name, prompts, 0, prompts.fingerprint, (own.samples or shared.samples) if temperature else 1,
                 own.budgets or shared.budgets, temperature, own.top_p or shared.top_p)


def admitted(costs: Sequence[int], counts: Sequence[int], limit: int | None) -> list[int]:
    """How many questions of each suite are asked.

    Args:
        costs: the most tokens that a question of each suite may take.
        counts: questions of each suite.
        limit: tokens in all; None: no limit.
    """
    if limit is None:
        return list(counts)
    asked, left = [0] * len(costs), limit
    open_suites = list(range(len(costs)))
    while open_suites:
        for suite in tuple(open_suites):
            if asked[suite] == counts[suite] or costs[suite] > left:
                open_suites.remove(suite)
            else:
                asked[suite], left = asked[suite] + 1, left - costs[suite]
    return asked
