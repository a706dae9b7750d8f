"""The columns of the table of results, the same on the terminal and on the page: what they show and sort by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tombola.lab.inputs import bits
from tombola.lab.report.rows import Row, Stat, Task, control_name
from tombola.lab.report.words import NBSP, count, listing, percent, spread


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
        Column("round", lambda row: str(row.round or ""), lambda row: row.round or None),
        Column("density", lambda row: percent(row.density.mean), lambda row: row.density.mean, _kept),
        Column("accuracy", lambda row: accuracy(row.accuracy), lambda row: row.accuracy.mean, _seeds),
        Column("≥ dense", lambda row: "✓" if row.good else "", lambda row: 1 if row.good else None),
        Column("epochs", lambda row: f"{row.epochs.mean:,.6g}", lambda row: row.epochs.mean),
    ]
    tokens = list(dict.fromkeys(row.token for task in tasks for row in task.rows if row.token))
    columns += [_bits(token) for token in tokens]
    if tokens:
        columns.append(Column("perplexity", _perplexity, lambda row: row.loss.mean if row.loss and row.token else None))
    if not any(task.searched for task in tasks):
        del columns[0]
    if any(row.trained for task in tasks for row in task.rows):
        columns.append(Column("arithmetic", _arithmetic, lambda row: row.arithmetic.mean if row.arithmetic else None))
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


def reading(tasks: Sequence[Task]) -> str:
    """How to read accuracy, epochs and what else the columns of `tasks` need words for."""
    text = "Accuracy: on the test set, in %, mean ± sd over seeds"
    if any(row.token for task in tasks for row in task.rows):
        text += ", of texts the share of tokens that are foretold"
    if any(task.searched for task in tasks):
        text += ", of tickets after retraining. Epochs: of the search up to that round and of the retraining"
    if any(task.swept for task in tasks):
        text += "; every s₀: with those of all initial scores tried"
    if any(row.trained for task in tasks for row in task.rows):
        text += ". Arithmetic: multiply-adds of the training, in epochs of the dense net at full width"
    return f"{text}."


def _bits(token: str) -> Column:
    """The loss of a text made of such tokens, in bits."""

    def of(row: Row) -> Stat | None:
        return row.loss if row.token == token else None

    def text(row: Row) -> str:
        loss = of(row)
        if loss is None:
            return ""
        return bits(loss.mean) + ("" if loss.sd is None else f"{NBSP}±{NBSP}{bits(loss.sd)}")

    return Column(f"bits per {token}", text, lambda row: loss.mean if (loss := of(row)) else None)


def _perplexity(row: Row) -> str:
    return f"{math.exp(row.loss.mean):.4g}" if row.loss and row.token else ""


def _arithmetic(row: Row) -> str:
    return f"{row.arithmetic.mean:,.3g}" if row.arithmetic else ""


def _kept(row: Row) -> str:
    return f"{', '.join(f'{kept:,}' for kept in row.kept)} of {count(row.maskable, 'weight')}"


def _seeds(row: Row) -> str:
    return f"{'seed' if len(row.seeds) == 1 else 'seeds'} {listing(row.seeds)}"
