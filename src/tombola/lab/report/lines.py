"""Drawing what happened over the epochs: one line for each network, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tombola.lab.report.curves import Curve
from tombola.lab.report.figures import BAND, size
from tombola.lab.report.marks import Marks
from tombola.lab.report.scales import accuracy_axis, clipped
from tombola.lab.report.svg import INK
from tombola.lab.report.words import percent

DOTS = 7  # of a line, about; they tell lines of one colour apart


def draw_accuracies(axes: Axes, curves: Sequence[Curve]) -> Marks:
    """Accuracies that begin near chance and end near 100 %."""
    marks = _draw(axes, curves, top=clipped(1.0))
    values = [value.mean + sign * (value.sd or 0.0) for curve in curves for value in curve.values for sign in (-1, 1)]
    accuracy_axis(axes, values)
    axes.set_ylabel("test accuracy")
    return marks


def draw_losses(axes: Axes, curves: Sequence[Curve]) -> Marks:
    """Losses, by ratio if they go down far."""
    marks = _draw(axes, curves)
    means = [value.mean for curve in curves for value in curve.values]
    if 0 < 10 * min(means) < max(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 1.5, max(means) * 1.3)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("training loss")
    return marks


def draw_shares(axes: Axes, curves: Sequence[Curve], what: str) -> Marks:
    """Shares of the connections."""
    marks = _draw(axes, curves)
    highest = max(value.mean + (value.sd or 0.0) for curve in curves for value in curve.values)
    axes.set_ylim(0, 1.05 * highest or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
    axes.set_ylabel(what)
    return marks


def _draw(axes: Axes, curves: Sequence[Curve], *, top: float = float("inf")) -> Marks:
    marks = Marks()
    for curve in curves:
        series = curve.series
        ink, marker, method = (INK["dense"], "", "") if series is None else (series.ink, series.marker, series.method)
        means = [min(value.mean, top) for value in curve.values]
        if any(value.sd for value in curve.values):
            low = [min(value.mean - (value.sd or 0.0), top) for value in curve.values]
            high = [min(value.mean + (value.sd or 0.0), top) for value in curve.values]
            band = axes.fill_between(curve.epochs, low, high, color=ink, alpha=BAND, lw=0)
            marks.add(band, method=method)
        every = max(1, round(len(means) / DOTS))
        (line,) = axes.plot(
            curve.epochs, means, color=ink, lw=1.4, marker=marker, ms=0.8 * size(marker), mew=0, markevery=every
        )
        marks.add(line, method=method, tip=f"{curve.row.full_name}: {percent(curve.row.density.mean)} of the weights")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_xlabel("epoch")
    return marks
