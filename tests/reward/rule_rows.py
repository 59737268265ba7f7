"""Rows for tests of length rules: by hand, and at random."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.reward.length_rule import RuleRows

NAN = math.nan


def budget(step=0, phase="compression", cap=64):
    return StepBudget(step, 0, phase, cap, 1)


def rows_of(table):
    """RuleRows from (length, cap, group, verdict) tuples."""
    length, cap, group, verdict = zip(*table, strict=True) if table else ((), (), (), ())
    return RuleRows(np.array(length, np.int64), np.array(cap, np.int64), np.array(group, np.int64),
                    np.array(verdict, np.float64))


@st.composite
def _row(draw):
    cap = draw(st.integers(4, 200))
    return draw(st.integers(1, cap)), cap, draw(st.integers(0, 4)), draw(st.sampled_from([0.0, 0.25, 1.0, NAN]))


tables = st.lists(_row(), max_size=30)
