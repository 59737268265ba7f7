"""Fields of a `config.json`, read with their kind checked. No torch.

Invariants:
- refused_by_name: a value of the wrong kind is refused with the field's name, the value and what it must be.
- null_is_absent: a field that is null counts as one that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siri_megatron.errors import ConfigError

FIX = "correct config.json, or copy the model directory again"


@dataclass(frozen=True)
class Fields:
    """A mapping of `config.json`. All readers raise ConfigError."""

    values: Mapping[str, Any]
    inside: str = ""
    """Name of the field that holds this mapping, with a dot behind; empty at the top."""

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number, at least 1."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refusal(name, value, "is a positive whole number")
        return value

    def number(self, name: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number above 0, at least `least`."""
        value = self._value(name, default)
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not real or value <= 0 or value < least:
            raise self.refusal(name, value, f"is a number of at least {least:g}" if least else "is a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "is true or false")
        return value

    def mapping(self, name: str) -> Fields:
        """The fields of a nested mapping; none if it is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self.refusal(name, value, "is a mapping")
        return Fields(value, f"{self.inside}{name}.")

    def refusal(self, name: str, value: object, rule: str, fix: str = FIX) -> ConfigError:
        """The error for a value that breaks `rule` (which goes on from the field's name)."""
        full = self.inside + name
        return ConfigError(f"{full}={value!r} in config.json", rule=f"{full} {rule}", fix=fix)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
