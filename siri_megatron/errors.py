"""Errors that a user can act on.

Every refusal says three things: what is wrong with both values in it, the rule that it breaks, and the fix.
The command line prints them without a traceback; the supervisor copies them into `result.json`.
"""

from __future__ import annotations


class SiriError(Exception):
    """A problem that the user can fix.

    Args:
        what: the problem, with every value that takes part in it.
        rule: the rule that these values break.
        fix: what to change.
    """

    exit_code = 2

    def __init__(self, what: str, *, rule: str = "", fix: str = "") -> None:
        self.what, self.rule, self.fix = what, rule, fix
        super().__init__(self.render())

    def render(self) -> str:
        lines = [self.what]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
        if self.fix:
            lines.append(f"  fix:  {self.fix}")
        return "\n".join(lines)


class ConfigError(SiriError):
    """The run configuration is wrong or contradicts the model, the data or the machine."""


class DataError(SiriError):
    """Prompts, a ledger or a tokenizer cannot be used; names the file and the line where there is one."""


class ModelError(SiriError):
    """A model directory or checkpoint cannot be used."""


class EngineError(SiriError):
    """A rollout engine died, answered wrongly, or did not answer in time."""

    exit_code = 3


class StaleFleet(EngineError):
    """Engines are up, but none has the weights asked for: they must be pushed (again) before anything is sampled."""


class RunFailed(SiriError):
    """A process of the run failed; carries the line that says which, where and why."""

    exit_code = 3


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 // 100 else f"{count / 2**20:.2f} MiB"
