"""Schedules, a step (0, 1, …) to a float: what methods compute their temperatures and densities by.

Methods take the numbers of a schedule and no function, so that every setting of theirs is plain data: it goes into
tickets, states and the names of runs.
"""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int], float]


def exponential(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` by a constant factor a step: start·(end/start)^(t/steps); ``end`` from then on."""
    return lambda step: start * (end / start) ** min(step / steps, 1.0)


def cubic(start: float, end: float, steps: int, *, begin: int = 0) -> Schedule:
    """Zhu & Gupta 2017, eq. 1: end + (start − end)·(1 − (t − begin)/(steps − begin))³, flat before and after."""

    def at(step: int) -> float:
        progress = min(max((step - begin) / max(steps - begin, 1), 0.0), 1.0)
        return end + (start - end) * (1.0 - progress) ** 3

    return at


def staircase(schedule: Schedule, every: int) -> Schedule:
    """``schedule`` of the number of whole periods of ``every`` steps that have passed: once an epoch, say."""
    return lambda step: schedule(step // every)
