"""The figures of a report: accuracy against density, accuracy against epochs spent, and the marks of their legend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tombola.lab.findings import percent, spread
from tombola.lab.summary import CONTROLS, Row, Stat, Task
from tombola.lab.svg import INK, STYLE, inline

SIZE = (5.6, 3.9)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
CONTROL_MARKERS = {"shuffled": "x", "reinitialised": "+"}
FAMILIES = {("cs", False): "s1", ("cs", True): "s2", ("imp", False): "s3", ("iss", False): "s4"}
ERROR_FLOOR = 5e-4  # an accuracy of exactly 1 has no place on a logarithmic error axis


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
        series.append(Series(rows[0].name, tuple(rows), INK[ink], marker))
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
        _accuracy_axis(axes, task)
        _log_axis(axes, [place(row).mean for row in task.tickets], percents=sparse_right)
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy")
        if sparse_right:
            axes.invert_xaxis()
        return inline(figure, prefix, title=title, points=tips)


def _dense_lines(axes: Axes, task: Task) -> None:
    for row in task.rows:
        if row.dense:
            mean, sd = row.accuracy.mean, row.accuracy.sd or 0.0
            axes.axhline(
                min(mean, 1 - ERROR_FLOOR), color=INK["dense"], lw=1.2, ls="--" if row.setting else "-", zorder=1.5
            )
            if not row.setting and sd:
                axes.axhspan(mean - sd, min(mean + sd, 1 - ERROR_FLOOR), color=INK["dense"], alpha=0.16, lw=0, zorder=1)


def _draw(
    axes: Axes,
    series: Series,
    place: Callable[[Row], Stat],
    tip: Callable[[Row, str, Stat], str],
    tips: dict[str, str],
    *,
    with_controls: bool,
) -> None:
    def put(row: Row, name: str, accuracy: Stat, marker: str, *, zorder: float) -> None:
        at = place(row)
        x, y = at.mean, min(accuracy.mean, 1 - ERROR_FLOOR)
        if accuracy.sd:
            top = min(y + accuracy.sd, 1 - ERROR_FLOOR)
            axes.vlines(x, y - accuracy.sd, top, color=series.ink, lw=1, alpha=0.75, zorder=zorder - 0.1)
        if at.sd and at.sd < at.mean:
            axes.hlines(y, at.mean - at.sd, at.mean + at.sd, color=series.ink, lw=1, alpha=0.75, zorder=zorder - 0.1)
        gid = f"p{len(tips)}"
        tips[gid] = tip(row, name, accuracy)
        axes.plot([x], [y], marker, color=series.ink, ms=5, mew=1.5 if marker in "x+1" else 0, gid=gid, zorder=zorder)

    rows = sorted(series.rows, key=lambda row: row.round)
    axes.plot(
        [place(r).mean for r in rows], [min(r.accuracy.mean, 1 - ERROR_FLOOR) for r in rows], color=series.ink, lw=1.3
    )
    for row in rows:
        put(row, series.name, row.accuracy, series.marker, zorder=3)
        if not with_controls and row is rows[-1]:
            axes.annotate(
                percent(row.density.mean),
                (place(row).mean, min(row.accuracy.mean, 1 - ERROR_FLOOR)),
                xytext=(5, -4),
                textcoords="offset points",
                fontsize=9,
                color=INK["muted"],
                annotation_clip=False,
            )
        if with_controls:
            for control, accuracy in row.controls.items():
                name = f"{series.name} {CONTROLS.get(control, control)}"
                put(row, name, accuracy, CONTROL_MARKERS.get(control, "1"), zorder=2.8)


def _accuracies(task: Task) -> list[float]:
    shown: list[Stat] = [row.accuracy for row in task.rows]
    shown += [accuracy for row in task.rows for accuracy in row.controls.values()]
    return [s.mean + sign * (s.sd or 0.0) for s in shown for sign in (-1, 1)]


def _accuracy_axis(axes: Axes, task: Task) -> None:
    """Accuracies near 100 % and collapsed ones on one axis: equal distances are equal ratios of the error."""
    found = _accuracies(task)
    low, high = max(0.0, min(found)), min(1 - ERROR_FLOOR, max(found))
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
    axes.yaxis.set_major_locator(_fixed(_stretched_ticks(*axes.get_ylim(), stretch)))
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


def _log_axis(axes: Axes, values: Sequence[float], *, percents: bool) -> None:
    axes.set_xscale("log")
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    axes.set_xlim(low / 1.25, high * (1.25 if percents else 1.5))
    axes.xaxis.set_major_locator(_fixed(list(_one_two_five(*axes.get_xlim()))))
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


def _fixed(ticks: Sequence[float]) -> mpl.ticker.FixedLocator:
    return mpl.ticker.FixedLocator(ticks)


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
