"""What a check says. Pure.

Invariants:
    every_trouble_has_a_fix: a check that warns or fails says what to do.
    fails_decide: the exit status is 1 if a check failed, else 0; warnings and what is skipped change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip"]
ORDER: tuple[Status, ...] = ("fail", "warn", "pass", "skip")


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what would mend it."""

    name: str
    status: Status
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.status in ("warn", "fail") and not self.fix:
            raise ValueError(f"check {self.name}: {self.status} without a fix")


def exit_status(checks: Sequence[Check]) -> int:
    return int(any(check.status == "fail" for check in checks))


def counted(checks: Sequence[Check]) -> dict[Status, int]:
    return {status: sum(check.status == status for check in checks) for status in ORDER}


def as_json(checks: Sequence[Check], about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "counts": counted(checks), "checks": [asdict(check) for check in checks]}


def as_text(checks: Sequence[Check]) -> str:
    """A line a check, its fix below; then the counts."""
    wide = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{wide}}  {check.found}")
        if check.fix:
            lines.append(f"{'':4}  {'':{wide}}  fix: {check.fix}")
    lines.append(", ".join(f"{count} {status}" for status, count in counted(checks).items()))
    return "\n".join(lines)
