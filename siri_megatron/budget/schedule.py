"""The shapes of one cycle: SIRI's length schedules (arXiv 2509.25176), the cap as a function of the step, and two plain
ones. How shapes make a run stands in `open_loop`.

Every schedule is a pure function `(t, period, l_min, l_max) -> float`, where `t` is the number of steps consumed
*including* the one at hand (the paper counts steps from 1), and `period` is the cycle length T. So t = T/2 is the last
step of a compression phase and t = T the last step of an expansion phase.

Invariants:
- bounded: l_min <= cap <= l_max, before and after rounding.
- periodic: the cap at t + T is the cap at t.
- lowest_point_in_compression: compression (0 < t mod T <= T/2) holds a step with cap l_min, unless `constant`.
- highest_point_in_expansion: expansion ends (t = T) at l_max.
- monotone_phases: the cap never rises in compression and never falls in expansion (within one cycle).

Rounding (the paper gives none): to the nearest integer, halves upwards, after removing float noise at the 6th
decimal. Truncation would turn the cosine's 12287.999999999998 at t = 3T/4 into 12287.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, float, float, float], float]


def cosine(t: float, period: float, l_min: float, l_max: float) -> float:
    """One cosine wave a cycle; the schedule of the paper's headline models."""
    middle, amplitude = (l_max + l_min) / 2, (l_max - l_min) / 2
    return middle + amplitude * math.cos(2 * math.pi * math.fmod(t, period) / period)


def stair(t: float, period: float, l_min: float, l_max: float) -> float:
    """l_min for the whole compression phase (0 < t mod T <= T/2), l_max for the expansion phase.

    Where the paper switches is only in an unreadable figure; two halves, compression first, is our reading.
    """
    return l_min if 0 < math.fmod(t, period) <= period / 2 else l_max


def stair_cosine(t: float, period: float, l_min: float, l_max: float) -> float:
    """Flat quarters at both ends, half a cosine wave between them: fall, hold, climb, hold."""
    middle, amplitude = (l_max + l_min) / 2, (l_max - l_min) / 2
    phi = 2 * math.pi * math.fmod(t, period) / period
    if phi < math.pi / 4 or phi >= 7 * math.pi / 4:
        return l_max
    if phi < 3 * math.pi / 4:
        return middle + amplitude * math.cos(2 * (phi - math.pi / 4))
    if phi < 5 * math.pi / 4:
        return l_min
    return middle + amplitude * math.cos(2 * (phi - 3 * math.pi / 4))


def linear(t: float, period: float, l_min: float, l_max: float) -> float:
    """Straight down to l_min at T/2, straight up to l_max at T: the least slope that covers the range."""
    return l_min + (l_max - l_min) * abs(1 - 2 * math.fmod(t, period) / period)


def constant(t: float, period: float, l_min: float, l_max: float) -> float:
    """l_max at every step: the fixed-cap baseline. Phases and tags stay, so that runs compare step by step."""
    return l_max


SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine, "stair": stair, "stair_cosine": stair_cosine, "linear": linear,
    "constant": constant,
}


def round_cap(value: float) -> int:
    """The stated rounding rule: nearest integer, halves upwards, float noise removed."""
    return math.floor(round(value, 6) + 0.5)
