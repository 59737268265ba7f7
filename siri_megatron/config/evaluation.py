"""What is evaluated: the run's own held-out problems, and suites of further ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import Budgets, RunName, Section
from siri_megatron.config.data import DatasetConfig

OWN = "held-out"
"""Name of the run's own held-out problems among the suites."""


class SuiteConfig(Section):
    name: RunName
    """Name in the report."""
    data: DatasetConfig
    """Its questions (keys as in data.train). Template, chat and prompt limit are those of `data`."""
    problems: int | None = Field(None, ge=1)
    """The first so many questions; None: all."""
    samples: int | None = Field(None, ge=1)
    """Samples a question (k of avg@k); None: evaluation.samples."""
    budgets: Budgets | None = None
    """Budgets at which accuracy is reported; None: evaluation.budgets."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; None: evaluation.temperature."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling; None: evaluation.top_p."""


class EvalConfig(Section):
    problems: int = Field(256, ge=0)
    """Problems of the run's own held-out split an evaluation; 0: none, the suites alone."""
    samples: int = Field(1, ge=1)
    """Samples a problem."""
    budgets: Budgets = (32, 48, 64, 128)
    """Budgets at which accuracy is reported; generation runs once, at the largest."""
    temperature: float = Field(1.0, ge=0)
    """Evaluation temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with this probability; 1: all."""
    suites: tuple[SuiteConfig, ...] = ()
    """Further sets of questions, evaluated each time beside the run's own and reported apart (docs/data.md)."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens one evaluation may generate: questions that might not fit are left out, and counted; None: all."""
    rollouts: Literal["beside", "drained", "frozen"] = "beside"
    """lag: rollouts under way share the engines with an evaluation, end before it, or stop and go on after it."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds that one evaluation may take; None: those of a step whose cap is the largest budget."""
    at_start: bool = True
    """Evaluate the starting weights."""
    at_phase_ends: bool = True
    """Evaluate every phase end."""

    @property
    def largest_budget(self) -> int:
        """Of all suites: what the engines' context must hold beside a prompt."""
        return max([*self.budgets, *(budget for suite in self.suites for budget in suite.budgets or ())])

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> EvalConfig:
        names = [OWN, *(suite.name for suite in self.suites)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two suites have the name {twice[0]!r} (the run's own problems are {OWN!r}): rename one")
        if not self.problems and not self.suites and (self.at_start or self.at_phase_ends):
            raise ValueError("problems=0 without suites leaves nothing to evaluate: add suites, or set at_start and "
                             "at_phase_ends to false")
        return self
