"""Times of a few functions side by side: medians over turns, so that a disturbance hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def milliseconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int = 9, seconds: float = 1.0
) -> dict[str, float]:
    """Median milliseconds of each function, called in turn ``repeats`` times after two calls that do not count.

    Fewer times, but at least three, if that takes more than ``seconds`` in all.
    """
    for _ in range(2):
        for function in functions.values():
            function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}
