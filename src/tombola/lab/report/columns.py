"""The columns of the table of results, the same on the terminal and on the page: what they show and sort by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tombola.lab.report.summary import Row, Stat, Task, control_name
from tombola.lab.report.words import count, listing, percent, spread


@dataclass(frozen=True)
class Column:
    """A column's heading, and for a row its text, the number it sorts by (None: always last), and more when asked."""

    name: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None]
    tip: Callable[[Row], str] = lambda row: ""


def result_columns(tasks: Sequence[Task]) -> list[Column]:
    """What every row of `tasks` tells, after the name of its method and setting."""
    columns = [
        Column("round", lambda row: "" if row.dense else str(row.round), lambda row: None if row.dense else row.round),
        Column("density", lambda row: percent(row.density.mean), lambda row: row.density.mean, _kept),
        Column("accuracy", lambda row: accuracy(row.accuracy), lambda row: row.accuracy.mean, _seeds),
        Column("≥ dense", lambda row: "✓" if row.good else "", lambda row: 1 if row.good else None),
        Column("epochs", lambda row: f"{row.epochs.mean:,.6g}", lambda row: row.epochs.mean),
    ]
    if any(task.swept for task in tasks):
        columns.append(Column("every s₀", lambda row: f"{row.epochs_all.mean:,.6g}", lambda row: row.epochs_all.mean))
    return columns


def control_column(control: str) -> Column:
    """The accuracy of one control, beside its ticket."""

    def mean(row: Row) -> float | None:
        return row.controls[control].mean if control in row.controls else None

    return Column(control_name(control), lambda row: accuracy(row.controls.get(control)), mean)


def accuracy(found: Stat | None) -> str:
    """Mean ± standard deviation in percent, without the sign that the heading has; empty if there is none."""
    return "" if found is None else spread(found, unit="")


def _kept(row: Row) -> str:
    return f"{', '.join(f'{kept:,}' for kept in row.kept)} of {count(row.maskable, 'weight')}"


def _seeds(row: Row) -> str:
    return f"{'seed' if len(row.seeds) == 1 else 'seeds'} {listing(row.seeds)}"
