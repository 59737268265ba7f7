"""What every section of a configuration shares: unknown keys are refused, values are final."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)

    def altered(self, key: str) -> bool:
        """Whether a key has another value than its default: one that nobody reads is refused then."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def _distinct(budgets: tuple[int, ...]) -> tuple[int, ...]:
    """A curve has one value at each budget, so a second one of the same name would have no place."""
    if twice := sorted({budget for budget in budgets if budgets.count(budget) > 1}):
        raise ValueError(f"{list(budgets)} has the budget {twice[0]} twice: leave one out")
    return budgets


RunName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]  # one directory below runs_dir, whatever the file system
Budgets = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_distinct)]
"""Response tokens, one or several."""
Beta = Annotated[float, Field(ge=0, lt=1)]
