"""The verifier's alarm: says loudly when many samples of a step have no verdict. Pure.

They are excluded from training, never scored as wrong; so a broken verifier (a dead service behind a custom reward, a
time-out too short for the machine) would quietly train on the rest, or on nothing.

Invariants:
    silent_up_to_the_limit: None while the share is at most the limit.
"""

from __future__ import annotations


def verifier_alarm(failed: int, samples: int, limit: float) -> str | None:
    """A one-line warning when more than `limit` of the samples have no verdict, else None. limit: share in [0, 1]."""
    if not samples or failed / samples <= limit:
        return None
    return (f"no verdict on {failed} of {samples} samples ({failed / samples:.0%}; reward.max_failed={limit:g}): they "
            "are left out; logs/collector.log has the first failure of each kind")
