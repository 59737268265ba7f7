"""What every section of a configuration shares: unknown keys are refused, values are final."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)


RunName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]  # one directory below runs_dir, whatever the file system
Budgets = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]  # response tokens, one or several
Beta = Annotated[float, Field(ge=0, lt=1)]
