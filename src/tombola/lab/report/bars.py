"""Drawing histograms of scores, and how dense each layer is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tombola.lab.report.curves import Scores
from tombola.lab.report.figures import SIZE, Series
from tombola.lab.report.marks import Marks
from tombola.lab.report.rows import Row
from tombola.lab.report.svg import INK
from tombola.lab.report.words import NBSP, percent

UNDECIDED = 4.0
EDGES = (-11.5, *(place / 2 for place in range(-20, 21)), 11.5)  # the outer bins have no end
PANEL = (1.4, 1.15)  # inches


def histograms_size(found: Sequence[Sequence[Scores]]) -> tuple[float, float]:
    """Inches that :func:`draw_histograms` wants."""
    return max(SIZE[0], max(map(len, found)) * PANEL[0] + 1.0), len(found) * PANEL[1] + 0.8


def draw_histograms(figure: Figure, found: Sequence[Sequence[Scores]]) -> Marks:
    """A row for each search, a column for each round: the share of the scores in each bin, by ratio."""
    marks = Marks()
    columns = max(map(len, found))
    grid = figure.subplots(len(found), columns, sharex=True, sharey=True, squeeze=False)
    lowest = min(min(count for count in s.counts if count) / sum(s.counts) for row in found for s in row)
    above: list[int] = []
    for axes_row, row in zip(grid, found, strict=True):
        rounds = [scores.round for scores in row]
        for axes, scores in zip(axes_row, row, strict=False):
            share = np.array(scores.counts) / sum(scores.counts)
            axes.axvspan(-UNDECIDED, UNDECIDED, color=INK["grid"], lw=0, zorder=0)
            axes.stairs(share, EDGES, baseline=lowest / 3, fill=True, color=scores.series.ink, lw=0)
            marks.add(axes, method=scores.series.method, tip=_tip(scores))
            if rounds != above and scores.round:
                axes.set_title(f"round{NBSP}{scores.round}", fontsize=9, pad=3)
            axes.grid(visible=False)
            axes.set(yscale="log", ylim=(lowest / 3, 1.4), xlim=(EDGES[0], EDGES[-1]))
            axes.xaxis.set_major_locator(FixedLocator([-10, -4, 4, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))
            axes.yaxis.set_major_locator(LogLocator(numticks=4))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
            axes.tick_params(labelsize=9)
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
        above = rounds
        label = row[0].name.replace(" ", "\n")  # a line for each setting, whatever their number
        axes_row[0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    figure.supxlabel("β·s", fontsize=11)
    return marks


def undecided(scores: Scores) -> float:
    """The share of the scores with |β·s| < 4."""
    inside = [
        count
        for count, low, high in zip(scores.counts, EDGES, EDGES[1:], strict=False)
        if -UNDECIDED <= low < high <= UNDECIDED
    ]
    return sum(inside) / sum(scores.counts)


def _tip(scores: Scores) -> str:
    where = f", round{NBSP}{scores.round}" if scores.round else ""
    return f"{scores.name}{where}: {percent(undecided(scores))} of the scores undecided"


def layers_size(found: Sequence[tuple[Series, Row]]) -> tuple[float, float]:
    """Inches that :func:`draw_layers` wants."""
    names = {layer.name for _, row in found for layer in row.layers}
    return 5.2, max(2.0, 0.7 + len(names) * (0.1 + 0.11 * len(found)))


def draw_layers(figure: Figure, found: Sequence[tuple[Series, Row]]) -> Marks:
    """A group of bars for each layer, the first at the top: the share of its weights that each network keeps."""
    marks = Marks()
    axes = figure.add_subplot()
    names = list(dict.fromkeys(layer.name for _, row in found for layer in row.layers))
    thick = 0.85 / len(found)
    for place, (series, row) in enumerate(found):
        densities = {layer.name: layer.kept / layer.size for layer in row.layers}
        own = [name for name in names if name in densities]
        at = [names.index(name) - 0.425 + (place + 0.5) * thick for name in own]
        bars = axes.barh(at, [densities[name] for name in own], 0.9 * thick, color=series.ink, lw=0)
        marks.add(*bars, method=series.method, tip=f"{row.full_name}: {percent(row.density.mean)} of the weights")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g} %"))
    axes.set_xlabel("weights kept")
    return marks
