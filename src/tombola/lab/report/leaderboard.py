"""Measured networks beside published ones of the same data, model and density, and how far the two compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tombola.lab.published import NEAR, Published, accuracies
from tombola.lab.report.rows import Row, Task, method_name
from tombola.lab.report.words import NBSP, count, listing, percent, spread

CAVEAT = (
    "Published accuracies are as printed; where an error was printed, which stands beside the method, they are what it "
    "leaves. Trainings differ from paper to paper: compare methods within one paper, or "
    "within these runs, rather than single digits across them."
)


@dataclass(frozen=True)
class Entry:
    """A line of a leaderboard: a measured network, or a published number.

    `origin` is paper and place, or what is to know of the measured network; `source` is where a published one was read.
    """

    name: str
    accuracy: float
    shown: str
    density: float
    epochs: float | None
    origin: str
    method: str
    source: str = ""

    @property
    def measured(self) -> bool:
        """Whether the number is from these runs."""
        return not self.source


@dataclass(frozen=True)
class Group:
    """All lines of about one density and one width, the best first."""

    density: float
    entries: tuple[Entry, ...]
    width: float = 1.0

    @property
    def title(self) -> str:
        """What the lines have in common."""
        width = "" if self.width == 1 else f", width {self.width:g}"
        return ("dense" if self.density == 1 else f"about {percent(self.density)} of the weights") + width


def leaderboard(task: Task) -> list[Group]:
    """The densities of `task` of which something is published, dense first; none for most tasks."""
    alike: list[list[Row]] = []
    for row in sorted(_comparable(task), key=lambda row: (row.width, -row.density.mean)):
        last = alike[-1][0] if alike else None
        if last is not None and last.width == row.width and _near(last.density.mean, row.density.mean):
            alike[-1].append(row)
        else:
            alike.append([row])
    groups = []
    for rows in alike:
        density, width = rows[0].density.mean, rows[0].width
        published = accuracies(data=task.data, model=_model(task, rows[0]), density=density)
        if published:
            entries = [*map(_published, published), *(_measured(row, task, published) for row in rows)]
            groups.append(Group(density, tuple(sorted(entries, key=lambda entry: -entry.accuracy)), width))
    return groups


def _model(task: Task, row: Row) -> str:
    """What the table of published numbers calls the model in that width."""
    return task.model if row.width == 1 else f"{task.model} width {row.width:g}"


def _comparable(task: Task) -> list[Row]:
    """Networks that are not empty; of texts no accuracy is published."""
    return [row for row in task.rows if row.density.mean > 0 and not row.token]


def _near(one: float, other: float) -> bool:
    return (one == 1) == (other == 1) and max(one, other) <= NEAR * min(one, other)


def _published(row: Published) -> Entry:
    around = "" if row.plus_minus is None else f"{NBSP}±{NBSP}{row.plus_minus:g}"
    assert row.density is not None
    assert row.accuracy is not None
    shown = f"{row.accuracy:.1f}" if round(row.accuracy, 1) == row.accuracy else f"{row.accuracy:g}"
    name, origin = method_name(row.method), f"{row.paper}, {row.where}"
    if row.metric == "error":
        name += f" (error {row.value:g}{NBSP}%)"
    return Entry(name, row.accuracy, shown + around, row.density, row.epochs, origin, row.method, row.source)


def _measured(row: Row, task: Task, published: Sequence[Published]) -> Entry:
    origin = "; ".join(["measured here", *notes(row, task, published)])
    shown, epochs = spread(row.accuracy, unit=""), row.training.mean
    return Entry(row.full_name, 100 * row.accuracy.mean, shown, row.density.mean, epochs, origin, row.method)


def sources(groups: Sequence[Group]) -> str:
    """Where the published numbers were read, each place once."""
    found = {(entry.origin, entry.source): None for group in groups for entry in group.entries if not entry.measured}
    return f"Read in: {'; '.join(f'{origin}: {source}' for origin, source in found)}."


def notes(row: Row, task: Task, published: Sequence[Published]) -> list[str]:
    """Why the numbers of `row` and those of `published` are not to be compared digit by digit."""
    said = [row.label] if row.label else []
    epochs = [other.epochs for other in published if other.epochs]
    epochs = epochs or [other.epochs for other in accuracies(data=task.data, model=_model(task, row)) if other.epochs]
    if epochs and row.training.mean < min(epochs):
        said.append(f"reduced: {count(row.training.mean, 'epoch')}, published from {min(epochs):,.6g} on")
    if row.original is False:
        said.append("other data: not the publisher’s own files")
    if len(row.seeds) == 1:
        said.append(f"one seed, {listing(row.seeds)}")
    return said
