"""Test accuracy against density, epochs spent and arithmetic; and what all figures share: series, inks, the legend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from tombola.lab.report.labels import EndLabel, figure_of, label_ends
from tombola.lab.report.marks import Marks
from tombola.lab.report.rows import Row, Stat, Task, control_name
from tombola.lab.report.scales import accuracy_axis, clipped, ratio_axis
from tombola.lab.report.svg import INK, STYLE, inline, standalone
from tombola.lab.report.words import count, percent, spread

SIZE = (5.2, 3.7)  # inches
BAND = 0.16  # how much of the dense net's ink its band has
MARKERS = ("o", "s", "^", "*", "v", "D", "h", "<", ">", "p")
DENSE_MARKER = "d"
BARS = (":", "-.")  # lines of dense nets that were trained longer or shorter than most
CONTROL_MARKERS = {"shuffled": "x", "reinitialised": "+"}  # drawn a little aside: bars would hide each other
FAMILIES = {("cs", False): "s1", ("cs", True): "s2", ("imp", False): "s3", ("iss", False): "s4"}
FAMILIES |= {("rigl", True): "s1", ("gmp", True): "s3", ("set", True): "s4"}
"""The ink of a method, with or without a density that was asked for, unless another one of the task has it."""


@dataclass(frozen=True)
class Series:
    """The rounds of one setting, or the densities of a method that knows no rounds, and how they are drawn."""

    name: str
    rows: tuple[Row, ...]
    ink: str
    marker: str

    @property
    def method(self) -> str:
        """Whose they are."""
        return self.rows[0].method


def series_of(task: Task) -> list[Series]:
    """One series for each setting that makes tickets: a colour for each kind of method, a marker for each setting."""
    settings: dict[str, list[Row]] = {}
    for row in task.tickets:
        settings.setdefault(row.family if row.trained else row.group, []).append(row)
    series = []
    inks: dict[tuple[str, bool], str] = {}
    for number, rows in enumerate(settings.values()):
        kind = (rows[0].method, rows[0].asked is not None)
        if kind not in inks:
            inks[kind] = _ink(FAMILIES.get(kind, "s5"), list(inks.values()))
        ink = INK[inks[kind]]
        ordered = tuple(sorted(rows, key=lambda row: (row.round, -row.density.mean)))
        name = rows[0].family if rows[0].trained else rows[0].name
        series.append(Series(name, ordered, ink, MARKERS[number % len(MARKERS)]))
    return series


def _ink(wanted: str, used: Sequence[str]) -> str:
    """The one that is wanted, or else one that was used least."""
    return min((wanted, "s2", "s4", "s5", "s3", "s1"), key=used.count)


@dataclass(frozen=True)
class View:
    """One way to look at the tickets of a task: where a row stands (None: nowhere), and what the axis says."""

    what: str
    axis: str
    place: Callable[[Row], Stat | None]
    density: bool


DENSITY = View("density", "weights kept (log scale, sparser to the right)", lambda row: row.density, density=True)
ARITHMETIC = View(
    "arithmetic",
    "multiply-adds, in epochs of the dense net (log scale)",
    lambda row: row.arithmetic,
    density=False,
)
EPOCHS = View("epochs spent", "epochs spent in all (log scale)", lambda row: row.epochs_all, density=False)


def views(task: Task) -> list[View]:
    """The ways to look at what the tickets of `task` cost, that which tells most first."""
    counted = [ARITHMETIC] if any(row.arithmetic for row in task.tickets) else []
    return [EPOCHS, *counted] if task.searched else [*counted, EPOCHS]


def legend(task: Task, prefix: str) -> list[tuple[str, Entry]]:
    """Mark and meaning of everything drawn for `task`, each mark as an element for a page."""
    return [(_mark(entry, f"{prefix}-{number}"), entry) for number, entry in enumerate(entries(task))]


def picture(tasks: Sequence[Task]) -> str:
    """Test accuracy against density for each of `tasks`, side by side with one legend, as an SVG file."""
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0] * columns, SIZE[1] * rows + 0.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        for number, task in enumerate(tasks, start=1):
            axes = figure.add_subplot(rows, columns, number)
            draw(axes, task, DENSITY)
            axes.set_title(name(task), fontsize=12)
        marks = {entry.text: handle(entry) for task in tasks for entry in entries(task)}
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=2 * columns + 1)
        names = "; ".join(name(task) for task in tasks)
        return standalone(figure, title=f"Test accuracy against density: {names}")


def name(task: Task) -> str:
    """What a task is called in figures."""
    return f"{task.model} on {task.data}"


@dataclass(frozen=True)
class Entry:
    """One line of the legend: what it says, the look of its mark, and the method that it is of (none: of all)."""

    text: str
    ink: str
    marker: str = ""
    line: str = "-"
    band: bool = False
    method: str = ""


def entries(task: Task) -> list[Entry]:
    """An entry for everything that is drawn for `task`."""
    found = []
    if task.dense is not None:
        several = task.dense.accuracy.sd is not None
        text = ", ".join(["dense", *_length(task, task.dense), *["± 1 sd"] * several])
        found.append(Entry(text, INK["dense"], band=several))
    for row, line in _other_bars(task):
        found.append(Entry(", ".join(["dense", *_length(task, row)]), INK["dense"], line=line))
    if any(_longer(row) for row in task.rows):
        found.append(Entry("dense, equal epochs", INK["dense"], line="--"))
    found += [Entry(series.name, series.ink, series.marker, method=series.method) for series in series_of(task)]
    for control in task.controls:
        marker = CONTROL_MARKERS.get(control, "1")
        found.append(Entry(f"control: {control_name(control)}", INK["muted"], marker, line=""))
    return found


def handle(entry: Entry) -> Any:
    """The mark of a legend's line for matplotlib."""
    look: dict[str, Any] = {"marker": entry.marker, "ms": size(entry.marker), "mew": _edge(entry.marker)}
    line = Line2D([], [], color=entry.ink, lw=1.3, ls=entry.line, **look)
    return (Patch(color=entry.ink, alpha=BAND, lw=0), line) if entry.band else line


def size(marker: str) -> float:
    """How large a marker is drawn, in points, so that all look alike."""
    return {"*": 8.5, "x": 5.5, "+": 7.0, "^": 6.0, "v": 6.0}.get(marker, 5.0)


def _edge(marker: str) -> float:
    return 1.5 if marker in {"x", "+", "1"} else 0.0


def draw(axes: Axes, task: Task, view: View) -> Marks:
    """Draw the tickets of `task` into `axes` as `view` shows them."""
    marks = Marks()
    drawn = series_of(task)
    shown = [row.accuracy for row in task.rows]
    places: list[float] = []
    _dense_lines(axes, task)
    for row in () if view.density else (row for row in task.rows if row.dense):
        if at := view.place(row):
            _put(axes, row, at, row.accuracy, (INK["dense"], DENSE_MARKER), marks, row.name)
            places.append(at.mean)
    for series in drawn:
        found = list(_placed(series, view))
        places += [at.mean for _, at in found]
        means = [clipped(row.accuracy.mean) for row, _ in found]
        marks.add(*axes.plot([at.mean for _, at in found], means, color=series.ink, lw=1.3), method=series.method)
        for row, at in found:
            _put(axes, row, at, row.accuracy, (series.ink, series.marker), marks, row.full_name)
            for index, (control, accuracy) in enumerate(row.controls.items() if view.density else ()):
                look, aside = (series.ink, CONTROL_MARKERS.get(control, "1")), 3.0 if index % 2 else -3.0
                called = f"{row.full_name}, {control_name(control)}"
                _put(axes, row, at, accuracy, look, marks, called, aside=aside)
                shown.append(accuracy)
    accuracy_axis(axes, [s.mean + sign * (s.sd or 0.0) for s in shown for sign in (-1, 1)])
    ratio_axis(axes, places, percents=view.density)
    axes.set_xlabel(view.axis)
    axes.set_ylabel("test accuracy")
    if view.density:
        axes.invert_xaxis()
    else:
        ended = [series for series in drawn if list(_placed(series, view))]
        labels = label_ends(axes, [_end(series, view) for series in ended])
        for series, label in zip(ended, labels, strict=True):
            marks.add(label, method=series.method)
    return marks


def _placed(series: Series, view: View) -> Iterator[tuple[Row, Stat]]:
    """The rows that have a place; no logarithm has room for an empty ticket."""
    for row in series.rows:
        if (at := view.place(row)) is not None and at.mean > 0:
            yield row, at


def _end(series: Series, view: View) -> EndLabel:
    """Beside the last round of a series the density that it came to."""
    path, bars = [], []
    for row, at in _placed(series, view):
        x, y, sd = at.mean, clipped(row.accuracy.mean), row.accuracy.sd or 0.0
        path.append((x, y))
        bars.append(((x, y - sd), (x, clipped(y + sd))))
    return EndLabel(path, bars, percent(row.density.mean), series.ink)


def _dense_lines(axes: Axes, task: Task) -> None:
    lines = [*_other_bars(task), *((row, "--") for row in task.rows if _longer(row) and row not in task.bars)]
    if task.dense is not None:
        lines.append((task.dense, "-"))
        mean, sd = task.dense.accuracy.mean, task.dense.accuracy.sd or 0.0
        if sd:
            axes.axhspan(mean - sd, clipped(mean + sd), color=INK["dense"], alpha=BAND, lw=0, zorder=1)
    for row, line in lines:
        axes.axhline(clipped(row.accuracy.mean), color=INK["dense"], lw=1.2, ls=line, zorder=1.5)


def _other_bars(task: Task) -> list[tuple[Row, str]]:
    """The dense nets that the longer and shorter trainings are held against, and the line of each."""
    return [(row, BARS[place % len(BARS)]) for place, row in enumerate(task.bars[1:])]


def _length(task: Task, bar: Row) -> list[str]:
    """How long a dense net was trained, where sparse ones are held against several; and how wide it is, if they differ
    in that."""
    if len(task.bars) < 2:
        return []
    widths = {other.width for other in task.bars}
    return [
        count(bar.training.mean, "epoch"),
        *[f"width {bar.width:g}"] * (len(widths) > 1 and bar.width != max(widths)),
    ]


def _longer(row: Row) -> bool:
    """Whether it is the dense net with as many epochs as a search; the others are no bar for every sparse net."""
    return row.dense and row.setting.removesuffix(" bf16") == "equal epochs"  # all rows of a study may be in bf16


def _put(
    axes: Axes,
    row: Row,
    at: Stat,
    accuracy: Stat,
    look: tuple[str, str],
    marks: Marks,
    called: str,
    *,
    aside: float = 0.0,
) -> None:
    """One mark with its bars, `aside` points to the right of its place."""
    (ink, marker), y, sd = look, clipped(accuracy.mean), accuracy.sd or 0.0
    method = "" if row.dense else row.method
    zorder = 2.8 if aside else 3.0
    moved = axes.transData + ScaledTranslation(aside / 72, 0, figure_of(axes).dpi_scale_trans)
    bars: dict[str, Any] = {"color": ink, "lw": 1, "alpha": 0.6, "zorder": zorder - 0.1, "transform": moved}
    if sd:
        marks.add(axes.vlines(at.mean, y - sd, clipped(y + sd), **bars), method=method)
    if at.sd and at.sd < at.mean:
        marks.add(axes.hlines(y, at.mean - at.sd, at.mean + at.sd, **bars), method=method)
    spent = f"{row.epochs_all.mean:,.6g} epochs"
    tip = f"{called}: {percent(row.density.mean)} of the weights, {spread(accuracy)}, {spent}"
    style: dict[str, Any] = {"color": ink, "ms": size(marker), "mew": _edge(marker)}
    marks.add(*axes.plot([at.mean], [y], marker, zorder=zorder, transform=moved, **style), method=method, tip=tip)


def _mark(entry: Entry, prefix: str) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if entry.band:
            axes.axhspan(0.15, 0.85, color=entry.ink, alpha=BAND, lw=0)
        if entry.line:
            axes.plot([0, 1], [0.5, 0.5], color=entry.ink, lw=1.3, ls=entry.line)
        if entry.marker:
            look: dict[str, Any] = {"ms": size(entry.marker), "mew": _edge(entry.marker)}
            axes.plot([0.5], [0.5], entry.marker, color=entry.ink, **look)
        return inline(figure, prefix, title="")
