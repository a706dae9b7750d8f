"""The axes of the report's figures: densities and epochs by ratio, accuracies so that near and far ones both show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

ERROR_FLOOR = 5e-4  # an accuracy of exactly 1 has no place on a logarithmic error axis


def clipped(accuracy: float) -> float:
    """An accuracy as it can be drawn."""
    return min(accuracy, 1 - ERROR_FLOOR)


def accuracy_axis(axes: Axes, found: Sequence[float]) -> None:
    """Make room for `found`, be they near 100 % or collapsed: equal distances are then equal ratios of the error."""
    low, high = max(0.0, min(found)), clipped(max(found))
    if (1 - low) / max(1 - high, ERROR_FLOOR) < 3:  # close together: an ordinary axis says it better
        margin = max(0.05 * (high - low), 0.002)
        axes.set_ylim(low - margin, min(1.0, high + margin))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
        return

    def stretch(y: np.ndarray) -> np.ndarray:
        error: np.ndarray = np.maximum(1 - np.asarray(y, dtype=float), ERROR_FLOOR / 10)
        return np.asarray(-np.log(error))

    def shrink(z: np.ndarray) -> np.ndarray:
        return np.asarray(1 - np.exp(-np.asarray(z, dtype=float)))

    bottom, top = stretch(np.array([low, high]))
    margin = 0.05 * (top - bottom)
    axes.set_yscale("function", functions=(stretch, shrink))
    axes.set_ylim(*shrink(np.array([bottom - margin, top + margin])))
    axes.yaxis.set_major_locator(FixedLocator(_stretched_ticks(*axes.get_ylim(), stretch)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))


def _stretched_ticks(low: float, high: float, stretch: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Round accuracies, the roundest first, as long as they are a tenth of the axis apart."""
    wanted = (0.5, 0.9, 0.99, 0.8, 0.95, 0.98, 0.97, 0.2, 0.0, 0.999, 0.995, 0.7, 0.6, 0.96, 0.93, 0.85, 0.4)
    apart = 0.1 * float(np.ptp(stretch(np.array([low, high]))))
    ticks: list[float] = []
    for tick in wanted:
        at = stretch(np.array([tick, *ticks]))
        if low <= tick <= high and (len(at) == 1 or np.abs(at[1:] - at[0]).min() >= apart):
            ticks.append(tick)
    return sorted(ticks)


def ratio_axis(axes: Axes, values: Sequence[float], *, percents: bool) -> None:
    """A logarithmic x axis for `values`, with round numbers at its ticks."""
    axes.set_xscale("log")
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    axes.set_xlim(low / 1.25, high * (1.25 if percents else 1.7))  # epochs: room for labels
    axes.xaxis.set_major_locator(FixedLocator(list(_one_two_five(*axes.get_xlim()))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    form = (lambda x, _: f"{100 * x:.3g} %") if percents else (lambda x, _: f"{x:g}")
    axes.xaxis.set_major_formatter(FuncFormatter(form))


def _one_two_five(low: float, high: float) -> Iterable[float]:
    for exponent in range(-9, 10):
        for digit in (1, 2, 5):
            tick = digit * 10.0**exponent
            if low <= tick <= high:
                yield tick
