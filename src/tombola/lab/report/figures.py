"""The figures of a report: accuracy against density, accuracy against epochs spent, and the marks of their legend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from tombola.lab.report.findings import percent, spread
from tombola.lab.report.scales import accuracy_axis, clipped, ratio_axis
from tombola.lab.report.summary import CONTROLS, Row, Stat, Task
from tombola.lab.report.svg import INK, STYLE, inline

SIZE = (5.2, 3.7)  # inches
LABEL = (40, 10)  # room for a label, in points
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
CONTROL_MARKERS = {"shuffled": "x", "reinitialised": "+"}  # drawn a little aside: bars would hide each other
FAMILIES = {("cs", False): "s1", ("cs", True): "s2", ("imp", False): "s3", ("iss", False): "s4"}


@dataclass(frozen=True)
class Series:
    """The rounds of one setting, and how they are drawn."""

    name: str
    rows: tuple[Row, ...]
    ink: str
    marker: str


def series_of(task: Task) -> list[Series]:
    """One series for each setting that makes tickets: a colour for each kind of method, a marker for each setting."""
    settings: dict[str, list[Row]] = {}
    for row in task.tickets:
        settings.setdefault(row.group, []).append(row)
    used: dict[str, int] = {}
    series = []
    for rows in settings.values():
        ink = FAMILIES.get((rows[0].method, rows[0].asked is not None), "s5")
        used[ink] = used.get(ink, -1) + 1
        marker = MARKERS[used[ink] % len(MARKERS)]
        series.append(Series(rows[0].name, tuple(sorted(rows, key=lambda row: row.round)), INK[ink], marker))
    return series


def accuracy_by_density(task: Task, prefix: str) -> str:
    """Test accuracy of every retrained ticket against the share of weights it keeps, with dense nets and controls."""

    def tip(row: Row, name: str, accuracy: Stat) -> str:
        return f"{name}, round {row.round}: {percent(row.density.mean)} of the weights, {spread(accuracy)}"

    title = f"Test accuracy against density, {task.model} on {task.data}"
    return _figure(
        task, prefix, title, _density, "weights kept (log scale, sparser to the right)", tip, sparse_right=True
    )


def accuracy_by_epochs(task: Task, prefix: str) -> str:
    """The same accuracies against all epochs spent: search, retraining, and the same for every initial score tried."""

    def tip(row: Row, name: str, accuracy: Stat) -> str:
        spent = f"{row.epochs_all.mean:g} epochs, {percent(row.density.mean)} of the weights"
        return f"{name}, round {row.round}: {spent}, {spread(accuracy)}"

    title = f"Test accuracy against epochs spent, {task.model} on {task.data}"
    return _figure(task, prefix, title, _epochs, "epochs spent in all (log scale)", tip, sparse_right=False)


def legend(task: Task, prefix: str) -> list[tuple[str, str]]:
    """Mark and meaning of everything drawn for `task`."""
    entries = []
    if task.dense is not None:
        entries.append((_mark(f"{prefix}-dense", INK["dense"], "", "-", band=True), "dense, ± 1 sd"))
    if any(row.dense and row.setting for row in task.rows):
        entries.append((_mark(f"{prefix}-longer", INK["dense"], "", "--"), "dense, equal epochs"))
    for i, series in enumerate(series_of(task)):
        entries.append((_mark(f"{prefix}-s{i}", series.ink, series.marker, "-"), series.name))
    for control in _controls(task):
        mark = _mark(f"{prefix}-{control}", INK["muted"], CONTROL_MARKERS.get(control, "1"), "")
        entries.append((mark, f"control: {CONTROLS.get(control, control)}"))
    return entries


def _density(row: Row) -> Stat:
    return row.density


def _epochs(row: Row) -> Stat:
    return row.epochs_all


def _controls(task: Task) -> list[str]:
    named = {control for row in task.rows for control in row.controls}
    return [c for c in CONTROLS if c in named] + sorted(named - set(CONTROLS))


def _figure(
    task: Task,
    prefix: str,
    title: str,
    place: Callable[[Row], Stat],
    label: str,
    tip: Callable[[Row, str, Stat], str],
    *,
    sparse_right: bool,
) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        tips: dict[str, str] = {}
        _dense_lines(axes, task)
        for series in series_of(task):
            _draw(axes, series, place, tip, tips, with_controls=sparse_right)
        accuracy_axis(axes, _accuracies(task))
        ratio_axis(axes, [place(row).mean for row in task.tickets], percents=sparse_right)
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy")
        if sparse_right:
            axes.invert_xaxis()
        else:
            _label_ends(axes, task, place)
        return inline(figure, prefix, title=title, points=tips)


def _accuracies(task: Task) -> list[float]:
    shown: list[Stat] = [row.accuracy for row in task.rows]
    shown += [accuracy for row in task.rows for accuracy in row.controls.values()]
    return [s.mean + sign * (s.sd or 0.0) for s in shown for sign in (-1, 1)]


def _dense_lines(axes: Axes, task: Task) -> None:
    for row in task.rows:
        if row.dense:
            mean, sd = row.accuracy.mean, row.accuracy.sd or 0.0
            axes.axhline(clipped(mean), color=INK["dense"], lw=1.2, ls="--" if row.setting else "-", zorder=1.5)
            if not row.setting and sd:
                axes.axhspan(mean - sd, clipped(mean + sd), color=INK["dense"], alpha=0.16, lw=0, zorder=1)


def _draw(
    axes: Axes,
    series: Series,
    place: Callable[[Row], Stat],
    tip: Callable[[Row, str, Stat], str],
    tips: dict[str, str],
    *,
    with_controls: bool,
) -> None:
    figure = _figure_of(axes)

    def put(row: Row, name: str, accuracy: Stat, marker: str, *, zorder: float, aside: float = 0.0) -> None:
        at, y, spread = place(row), clipped(accuracy.mean), accuracy.sd or 0.0
        moved = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
        bars: dict[str, Any] = {
            "color": series.ink,
            "lw": 1,
            "alpha": 0.6,
            "zorder": zorder - 0.1,
            "transform": moved,
        }
        if spread:
            axes.vlines(at.mean, y - spread, clipped(y + spread), **bars)
        if at.sd and at.sd < at.mean:
            axes.hlines(y, at.mean - at.sd, at.mean + at.sd, **bars)
        gid = f"p{len(tips)}"
        tips[gid] = tip(row, name, accuracy)
        edge = 1.5 if marker in "x+1" else 0
        axes.plot([at.mean], [y], marker, color=series.ink, ms=5, mew=edge, gid=gid, zorder=zorder, transform=moved)

    rows = series.rows
    axes.plot([place(r).mean for r in rows], [clipped(r.accuracy.mean) for r in rows], color=series.ink, lw=1.3)
    for row in rows:
        put(row, series.name, row.accuracy, series.marker, zorder=3)
        if with_controls:
            for index, (control, accuracy) in enumerate(row.controls.items()):
                name, marker = f"{series.name} {CONTROLS.get(control, control)}", CONTROL_MARKERS.get(control, "1")
                put(row, name, accuracy, marker, zorder=2.8, aside=3.0 if index % 2 else -3.0)


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _label_ends(axes: Axes, task: Task, place: Callable[[Row], Stat]) -> None:
    """Beside the last round of each series the density that it came to; labels that would collide are moved apart."""
    figure = _figure_of(axes)
    figure.draw_without_rendering()  # now the layout is known
    ends = []
    for series in series_of(task):
        row = series.rows[-1]
        at = (place(row).mean, clipped(row.accuracy.mean))
        x, y = axes.transData.transform(at) * 72 / figure.dpi
        ends.append((y, x, at, percent(row.density.mean), series.ink))
    taken: list[tuple[float, float]] = []
    for y, x, at, text, ink in sorted(ends, reverse=True):
        level = min([y, *(other - LABEL[1] for left, other in taken if abs(left - x) < LABEL[0])])
        taken.append((x, level))
        offset = (6, level - y - 3)
        axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=9, color=ink, annotation_clip=False)


def _mark(prefix: str, ink: str, marker: str, line: str, *, band: bool = False) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if band:
            axes.axhspan(0.15, 0.85, color=ink, alpha=0.16, lw=0)
        if line:
            axes.plot([0, 1], [0.5, 0.5], color=ink, lw=1.3, ls=line)
        if marker:
            axes.plot([0.5], [0.5], marker, color=ink, ms=5.5, mew=1.5 if marker in "x+1" else 0)
        return inline(figure, prefix, title="")
