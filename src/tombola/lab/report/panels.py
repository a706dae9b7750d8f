"""The figures of a task in the order of the page, each with its views, captions and the name of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tombola.lab.report import bars, curves, figures, lines
from tombola.lab.report.curves import Curve
from tombola.lab.report.figures import DENSITY, SIZE, Entry, View, entries
from tombola.lab.report.marks import Marks
from tombola.lab.report.reading import Run
from tombola.lab.report.rows import Task
from tombola.lab.report.svg import INK
from tombola.lab.report.words import NBSP, percent


@dataclass(frozen=True, kw_only=True)
class Look:
    """One view of a figure.

    `key` is for the names of files, `label` for the control that chooses it, `title` for those who cannot see it;
    `legend` is what a picture of its own needs.
    """

    key: str
    label: str
    title: str
    caption: str
    draw: Callable[[Figure], Marks]
    legend: tuple[Entry, ...] = ()
    size: tuple[float, float] = SIZE


@dataclass(frozen=True)
class Panel:
    """A figure: `heading` and the label of a view make its headline.

    `wide`: it takes the whole width of the page. `sparse`: it shows no dense net, so that it is empty when the sparse
    methods in it are hidden.
    """

    heading: str
    looks: tuple[Look, ...]
    wide: bool = False
    sparse: bool = False


def panels(task: Task, runs: Iterable[Run]) -> list[Panel]:
    """Every figure of `task` for which something was recorded."""
    if not task.tickets:
        return []
    runs = tuple(runs)
    found = [_accuracies(task, [DENSITY]), _accuracies(task, figures.views(task))]
    found += [_training(task, runs), _moves(task, runs), _scores(task, runs)]
    return [panel for panel in found if panel.looks]


def layers(task: Task) -> Panel:
    """How dense the layers are, as a picture; the page has a table for it."""
    found = [(series, row) for series, row in curves.shown(task) if row.layers]
    look = Look(
        key="layers",
        label="weights kept",
        title=f"Density of each layer, {figures.name(task)}",
        caption="",
        draw=partial(bars.draw_layers, found=found),
        legend=tuple(_entry(Curve(row, series, (), ())) for series, row in found),
        size=bars.layers_size(found),
    )
    return Panel("Density of each layer", (look,) if found else ())


def _accuracies(task: Task, views: Sequence[View]) -> Panel:
    looks = [
        Look(
            key=f"accuracy-{view.what.replace(' ', '-')}",
            label="weights kept" if view.density else view.what,
            title=f"Test accuracy against {view.what}, {figures.name(task)}",
            caption=_caption(task, view),
            draw=partial(_on_axes, partial(figures.draw, task=task, view=view)),
            legend=tuple(entries(task)),
        )
        for view in views
    ]
    return Panel("Test accuracy against", tuple(looks))


def _on_axes(draw: Callable[[Axes], Marks], figure: Figure) -> Marks:
    return draw(figure.add_subplot())


def _caption(task: Task, view: View) -> str:
    if view.density:
        text = (
            "Test accuracy against the share of weights kept. The accuracy axis stretches towards "
            f"100{NBSP}% where accuracies differ widely: equal distances are equal ratios of the error."
        )
        return text + (" Bars are ± 1 standard deviation over seeds." if len(task.seeds) > 1 else "")
    grey = "Grey diamonds: dense training. " if any(row.dense for row in task.rows) else ""
    grey += f"Beside the {'last round of each search' if task.searched else 'sparsest of each method'}: the share of "
    grey += "weights it keeps."
    if view is figures.ARITHMETIC:
        whole = "multiply-adds of search and retraining" if task.searched else "arithmetic of their training"
        return f"The same {task.noun}s against the {whole}, in epochs of the dense net. {grey}"
    text = f"The same {task.noun}s against all epochs spent"
    if task.searched:
        text += ": the search up to the ticket’s round and the training of every ticket on the way"
    if task.swept:
        text += ", and the same for every setting of the method that was tried beside it"
    return f"{text}. {grey}"


def _training(task: Task, runs: Sequence[Run]) -> Panel:
    who = f"The networks whose layers are shown below{', retrained' if task.searched else ''}"
    who += ", beside the dense net" if task.dense is not None else ""
    many = ", mean over seeds with a band of ± 1 standard deviation" if len(task.seeds) > 1 else ""
    accuracy = curves.training(task, runs, lambda epoch: epoch.accuracy)
    loss = curves.training(task, runs, lambda epoch: epoch.train_loss)
    search = curves.searching(task, runs)
    return Panel(
        "While training",
        tuple(
            _over_epochs(key, label, f"{title}, {figures.name(task)}", f"{caption}{many}.", found, draw)
            for key, label, title, caption, found, draw in (
                ("training-accuracy", "test accuracy", "Test accuracy after each epoch", f"{who}: accuracy on the test "
                 "set after each epoch", accuracy, lines.draw_accuracies),
                ("training-loss", "loss", "Training loss of each epoch", f"{who}: mean loss over the training data in "
                 "each epoch", loss, lines.draw_losses),
                ("search-accuracy", "search", "Test accuracy in the course of the search", "Each search, round after "
                 "round, before any retraining: test accuracy, under the hard mask where a soft one trains", search,
                 lines.draw_accuracies),
            )
            if found
        ),
    )  # fmt: skip


def _moves(task: Task, runs: Sequence[Run]) -> Panel:
    since = "since the measurement before it, as a share of those that there were"
    looks = []
    for key, count in (("dropped", lambda moved: moved.dropped), ("grown", lambda moved: moved.grown)):
        found = curves.moves(task, runs, count)
        if any(value.mean for curve in found for value in curve.values):
            title = f"Connections {key} while training, {figures.name(task)}"
            caption = f"Connections that were {key} {since}. Methods that move none are left out."
            draw = partial(lines.draw_shares, what=f"connections {key}")
            looks.append(_over_epochs(f"connections-{key}", key, title, caption, found, draw))
    return Panel("Connections", tuple(looks), sparse=True)


def _over_epochs(
    key: str, label: str, title: str, caption: str, found: list[Curve], draw: Callable[[Axes, list[Curve]], Marks]
) -> Look:
    legend = tuple(_entry(curve) for curve in found)
    return Look(
        key=key, label=label, title=title, caption=caption, legend=legend,
        draw=partial(_on_axes, partial(_with, draw, found)),
    )  # fmt: skip


def _with(draw: Callable[[Axes, list[Curve]], Marks], found: list[Curve], axes: Axes) -> Marks:
    return draw(axes, found)


def _entry(curve: Curve) -> Entry:
    series = curve.series
    if series is None:
        return Entry(curve.row.name, INK["dense"])
    text = f"{curve.row.full_name}, {percent(curve.row.density.mean)}"
    return Entry(text, series.ink, series.marker, method=series.method)


def _scores(task: Task, runs: Sequence[Run]) -> Panel:
    found = curves.histograms(task, runs)
    if not found:
        return Panel("", ())
    look = Look(
        key="scores",
        label="β·s",
        title=f"Histograms of the scores at the end of each round, {figures.name(task)}",
        caption="Scores s, times the last temperature β, of the first seed of each search: a score above 0 keeps its "
        "weight. In the grey band are the undecided, |β·s| < 4, which the soft mask neither keeps nor drops. "
        "Shares are drawn by ratio; what lies beyond ±10 is in the bars at the ends.",
        draw=partial(bars.draw_histograms, found=found),
        size=bars.histograms_size(found),
    )
    return Panel("Scores at the end of the search", (look,), wide=look.size[0] > SIZE[0], sparse=True)
