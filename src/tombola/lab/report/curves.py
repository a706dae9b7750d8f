"""What happened while networks trained, as numbers to draw: curves over epochs, moves of masks, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tombola.lab.report.epochs import Epoch, Moved
from tombola.lab.report.figures import Series, series_of
from tombola.lab.report.findings import matching
from tombola.lab.report.reading import Run
from tombola.lab.report.rows import Row, Stat, Task, stat
from tombola.lab.report.summary import _key

BINS = 42  # of a histogram: 0.5 wide from −10 to 10, and what is below and above
ROUNDS = 6  # so many histograms stand side by side at most

Read: TypeAlias = Callable[[Epoch], float | None]


@dataclass(frozen=True)
class Curve:
    """A number after each of `epochs`, over the seeds of `row`; `series` says how it is drawn, None: as dense nets."""

    row: Row
    series: Series | None
    epochs: tuple[int, ...]
    values: tuple[Stat, ...]


@dataclass(frozen=True)
class Scores:
    """The histogram of β·s at the end of a round of the search `name`, that of its first seed."""

    name: str
    series: Series
    round: int
    counts: tuple[int, ...]


def shown(task: Task) -> list[tuple[Series, Row]]:
    """The network by which each series is shown: the sparsest as accurate as dense, or else the most accurate."""
    return [
        (series, matching(series.rows) or max(series.rows, key=lambda row: row.accuracy.mean))
        for series in series_of(task)
    ]


def training(task: Task, runs: Iterable[Run], read: Read) -> list[Curve]:
    """What `read` takes out of the trainings of the dense net and of the networks that are shown, after each epoch."""
    runs = tuple(runs)
    wanted: list[tuple[Series | None, Row]] = [(None, task.dense)] if task.dense is not None else []
    found = []
    for series, row in (*wanted, *shown(task)):
        seen = [_seen(_trained(run.epochs, row.round), read) for run in _members(row, runs)]
        found.append(_curve(row, series, seen))
    return [curve for curve in found if curve is not None]


def searching(task: Task, runs: Iterable[Run]) -> list[Curve]:
    """Accuracy in the course of each search, all rounds one after the other: that of the hard mask, if there is one."""
    runs = tuple(runs)
    found = []
    for series, row in shown(task):
        if not row.trained:
            found.append(_curve(row, series, [_in_a_row(run.epochs) for run in _members(row, runs)]))
    return [curve for curve in found if curve is not None]


def moves(task: Task, runs: Iterable[Run], count: Callable[[Moved], int]) -> list[Curve]:
    """The share of a network's connections that `count` gives, of those that there were at the measurement before."""

    def read(epoch: Epoch) -> float | None:
        return None if epoch.moved is None else count(epoch.moved) / max(epoch.moved.before, 1)

    return [curve for curve in training(task, runs, read) if curve.row.trained]


def histograms(task: Task, runs: Iterable[Run]) -> list[list[Scores]]:
    """For each search with scores the histograms of its rounds, of at most `ROUNDS` of them that are evenly apart."""
    runs = tuple(runs)
    found = []
    for series in series_of(task):
        for row in {row.group: row for row in series.rows}.values():
            rounds: dict[int, tuple[int, ...]] = {}
            for run in _members(row, runs)[:1]:
                rounds = {e.round: e.scores for e in run.epochs if len(e.scores) == BINS and any(e.scores)}
            if rounds:
                found.append([Scores(row.name, series, number, rounds[number]) for number in _spaced(sorted(rounds))])
    return found


def _members(row: Row, runs: Sequence[Run]) -> list[Run]:
    """The runs that `row` is made of, by their seeds."""
    own = [run for run in runs if run.seed in row.seeds and _key(run.config) == row.group]
    return sorted(own, key=lambda run: run.seed)


def _trained(epochs: Iterable[Epoch], round_: int) -> list[Epoch]:
    """The training that gave the number of a row. IMP trains a ticket in the round of search that follows it."""
    own = [epoch for epoch in epochs if epoch.label is None]
    last = [epoch for epoch in own if epoch.phase in ("train", "retrain") and epoch.round == round_]
    return last or [epoch for epoch in own if epoch.phase == "search" and epoch.round == round_ + 1]


def _in_a_row(epochs: Iterable[Epoch]) -> dict[int, float]:
    own = [epoch for epoch in epochs if epoch.phase == "search"]
    length = max((epoch.number for epoch in own), default=0)
    return {
        (epoch.round - 1) * length + epoch.number: epoch.accuracy if epoch.hard is None else epoch.hard for epoch in own
    }


def _seen(epochs: Iterable[Epoch], read: Read) -> dict[int, float]:
    found = {epoch.number: read(epoch) for epoch in epochs}
    return {number: value for number, value in found.items() if value is not None}


def _curve(row: Row, series: Series | None, seen: Sequence[Mapping[int, float]]) -> Curve | None:
    """Over the epochs that all seeds have measured; None if there is none, as in older runs."""
    common = sorted(set.intersection(*map(set, seen))) if seen else []
    if not common:
        return None
    return Curve(row, series, tuple(common), tuple(stat([values[epoch] for values in seen]) for epoch in common))


def _spaced(rounds: Sequence[int]) -> list[int]:
    """First, last and evenly between."""
    if len(rounds) <= ROUNDS:
        return list(rounds)
    return [rounds[round(place * (len(rounds) - 1) / (ROUNDS - 1))] for place in range(ROUNDS)]
