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
        Column("≥ dense", lambda row: "✓" if row.good else "", lambda row: 1 if row.good else None, _bar),
        Column("epochs", lambda row: f"{row.epochs.mean:,.6g}", lambda row: row.epochs.mean),
    ]
    if any(task.dearer for task in tasks):
        whole = Column(
            "epochs in all", lambda row: f"{row.epochs_all.mean:,.6g}", lambda row: row.epochs_all.mean, _tried
        )
        columns.append(whole)
    tokens = list(dict.fromkeys(row.token for task in tasks for row in task.rows if row.token))
    columns += [_bits(token) for token in tokens]
    if any(row.valid for task in tasks for row in task.rows):
        columns.append(Column("validation", _validation, lambda row: row.valid.mean if row.valid else None))
    if tokens:
        columns.append(Column("perplexity", _perplexity, lambda row: row.loss.mean if row.loss and row.token else None))
    if not any(task.searched for task in tasks):
        del columns[0]
    if any(row.arithmetic for task in tasks for row in task.rows):
        columns.append(Column("arithmetic", _arithmetic, lambda row: row.arithmetic.mean if row.arithmetic else None))
    return columns


def cost_columns(tasks: Sequence[Task]) -> list[Column]:
    """What a network costs to use, and what it took to find it; of older runs nothing is known."""
    columns = [
        Column("multiply-adds", lambda row: _short(row.multiply_adds, 1000), lambda row: _mean(row.multiply_adds)),
        Column("bytes", lambda row: _short(row.bytes, 1024), lambda row: _mean(row.bytes), _bytes),
        Column("wall time", lambda row: _time(row.seconds), lambda row: _mean(row.seconds), _device),
    ]
    rows = [row for task in tasks for row in task.rows]
    return [column for column in columns if any(column.text(row) for row in rows)]


def label_columns(tasks: Sequence[Task]) -> list[Column]:
    """Which rows are reduced, where some are."""
    reduced = any(row.label for task in tasks for row in task.rows)
    return [Column("scale", lambda row: row.label, lambda row: 1 if row.label else None)] if reduced else []


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
    if any(row.valid for task in tasks for row in task.rows):
        text += "; validation: bits on the part of a text that is for choosing among settings"
    searched = any(task.searched for task in tasks)
    if searched:
        text += ", of tickets after retraining. Epochs: of that ticket alone, its search and its retraining"
    if any(row.found_on for task in tasks for row in task.rows):
        text += "; a ticket “from” other data was searched on those, and retrained and tested here"
    if any(task.dearer for task in tasks):
        more = ["the training of every ticket on the way"] if searched else []
        more += ["every setting of the method that was tried"] if any(task.swept for task in tasks) else []
        text += f"{'; e' if searched else '. E'}pochs in all: of the curve as far as that row, with {listing(more)}"
    if any(row.arithmetic for task in tasks for row in task.rows):
        whole = "search and training" if searched else "the training"
        text += f". Arithmetic: multiply-adds of {whole}, in epochs of the dense net at full width"
    if columns := [column.name for column in cost_columns(tasks)]:
        meaning = {
            "multiply-adds": "of one example", "bytes": "kept values and a bit per masked weight",
            "wall time": "of one seed, measuring included, beside whatever else the machine did",
        }  # fmt: skip
        text += "".join(f". {name.capitalize()}: {meaning[name]}" for name in columns)
    return f"{text}."


def _bits(token: str) -> Column:
    """The loss of a text made of such tokens, in bits."""

    def of(row: Row) -> Stat | None:
        return row.loss if row.token == token else None

    return Column(
        f"bits per {token}", lambda row: _in_bits(of(row)), lambda row: loss.mean if (loss := of(row)) else None
    )


def _in_bits(loss: Stat | None) -> str:
    if loss is None:
        return ""
    return bits(loss.mean) + ("" if loss.sd is None else f"{NBSP}±{NBSP}{bits(loss.sd)}")


def _validation(row: Row) -> str:
    return _in_bits(row.valid)


def _perplexity(row: Row) -> str:
    return f"{math.exp(row.loss.mean):.4g}" if row.loss and row.token else ""


def _arithmetic(row: Row) -> str:
    return f"{row.arithmetic.mean:,.3g}" if row.arithmetic else ""


def _mean(found: Stat | None) -> float | None:
    return None if found is None else found.mean


def _short(found: Stat | None, thousand: int) -> str:
    """Three digits and a letter: 1,536 bytes are 1.50 k."""
    if found is None:
        return ""
    power = 0 if found.mean < thousand else min(4, int(math.log(found.mean, thousand)))
    digits = f"{found.mean / thousand**power:#.3g}".rstrip(".") if power else f"{found.mean:.0f}"
    return digits + NBSP * bool(power) + ("", "k", "M", "G", "T")[power]


def _time(found: Stat | None) -> str:
    if found is None:
        return ""
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if found.mean >= 2 * seconds:
            return f"{found.mean / seconds:.3g}{NBSP}{unit}"
    return f"{found.mean:.3g}{NBSP}s"


def _bytes(row: Row) -> str:
    return f"{row.bytes.mean:,.0f} bytes" if row.bytes else ""


def _device(row: Row) -> str:
    return f"on {listing(row.devices)}" if row.devices else ""


def _kept(row: Row) -> str:
    return f"{', '.join(f'{kept:,}' for kept in row.kept)} of {count(row.maskable, 'weight')}"


def _bar(row: Row) -> str:
    if row.bar is None:
        return ""
    return f"dense in {count(row.bar.training.mean, 'epoch')}: {spread(row.bar.accuracy)}"


def _tried(row: Row) -> str:
    return f"{row.tried} settings tried" if row.tried > 1 else ""


def _seeds(row: Row) -> str:
    return f"{'seed' if len(row.seeds) == 1 else 'seeds'} {listing(row.seeds)}"
