"""Published numbers, to be set beside measured ones: ``published.csv`` as checked rows, and what to look up in them.

A row is verified if somebody read the number where it was published, or where it is quoted. Rows from memory, read off
a figure, or of which nobody noted where they were read, are kept as targets to test against; :func:`lookup` never gives
them, and nothing prints them. Ranges, bounds ("above 75 %") and differences are not in the table.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from tombola.lab.errors import LabError

METRICS = {
    "accuracy": "%",
    "validation accuracy": "%",
    "error": "%",
    "mean average precision": "%",
    "loss": "nats",
}
NEAR = 1.1
"""Two densities whose ratio is at most this are the same density."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number of one paper.

    Args:
        paper, where: who published it, and in which table, figure or section.
        data, model: by the names that the lab has for them, if it has; a model of another width as "NAME width X".
        method: as the paper calls it, with its variant.
        density: kept share of the weights that carry a mask, 1 for dense nets; None: not stated.
        metric: one of ``METRICS``, which has the units.
        value, plus_minus: in these units; ``plus_minus`` as the paper has it, mostly a standard deviation.
        epochs: of the one training that gave the number; None: not stated.
        source: where it was read.
        verified: whether it was read in print.
    """

    paper: str
    where: str
    data: str
    model: str
    method: str
    density: float | None
    metric: str
    value: float
    plus_minus: float | None
    epochs: float | None
    source: str
    verified: bool

    def __post_init__(self) -> None:
        for name in ("paper", "where", "data", "model", "method", "source"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density:g}, but must be above 0 and at most 1")
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}, but must be one of {', '.join(METRICS)}")
        most = 100.0 if METRICS[self.metric] == "%" else math.inf
        if not 0 < self.value <= most or not math.isfinite(self.value):
            raise ValueError(f"value is {self.value:g}, but must be above 0{' and at most 100' if most == 100 else ''}")
        for name in ("plus_minus", "epochs"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{name} is {number:g}, but must be 0 or more")

    @property
    def accuracy(self) -> float | None:
        """The accuracy on the test set in %, as printed or as what the printed error leaves; None: it is neither."""
        turned = {"accuracy": self.value, "error": round(100 - self.value, 6)}
        return turned.get(self.metric)


COLUMNS = tuple(field.name for field in fields(Published))


@cache
def rows() -> tuple[Published, ...]:
    """All rows of the table, verified or not.

    Raises:
        LabError: the table is damaged.
    """
    file = resources.files("tombola.lab") / "published.csv"
    return parse(file.read_text(encoding="utf-8"), where=file.name)


def parse(text: str, *, where: str) -> tuple[Published, ...]:
    """The rows of a table in the form of ``published.csv``. ``where``, the file's name, begins each complaint.

    Raises:
        LabError: columns or values that are missing, unknown or out of range, or a row that is there twice.
    """
    reader = csv.reader(io.StringIO(text))
    if (head := tuple(next(reader, ()))) != COLUMNS:
        raise LabError(f"{where}: the columns must be {', '.join(COLUMNS)}, not {', '.join(head) or 'none'}")
    found: dict[tuple[object, ...], int] = {}
    table = []
    for cells in reader:
        at = f"{where}:{reader.line_num}"
        if len(cells) != len(COLUMNS):
            raise LabError(f"{at}: has {len(cells)} values for {len(COLUMNS)} columns")
        try:
            row = _row(dict(zip(COLUMNS, cells, strict=True)))
        except ValueError as error:
            raise LabError(f"{at}: {error}") from None
        identity = (row.paper, row.where, row.data, row.model, row.method, row.density, row.metric, row.epochs)
        if identity in found:
            raise LabError(f"{at}: is there already, in line {found[identity]}")
        found[identity] = reader.line_num
        table.append(row)
    return tuple(table)


def lookup(*, data: str, model: str, density: float | None = None, metric: str = "accuracy") -> Sequence[Published]:
    """Verified rows of ``model`` on ``data``, the highest values first.

    Args:
        data: by its name in the lab; of a folder or a text by its own name, so that ``folder/imagenet`` is imagenet.
        model: by its name in the lab.
        density: only rows of about this one; None: all, also those that state none.
        metric: one of ``METRICS``.
    """
    name = data.rpartition("/")[2].lower()
    alike = [
        row
        for row in rows()
        if row.verified and (row.data, row.model, row.metric) == (name, model, metric) and _near(row.density, density)
    ]
    return sorted(alike, key=lambda row: -row.value)


def accuracies(*, data: str, model: str, density: float | None = None) -> Sequence[Published]:
    """Verified rows that have an :attr:`Published.accuracy`, those printed as errors among them, the highest first."""
    metrics = ("accuracy", "error")
    both = (row for metric in metrics for row in lookup(data=data, model=model, density=density, metric=metric))
    return sorted(both, key=lambda row: -(row.accuracy or 0))


def _near(published: float | None, asked: float | None) -> bool:
    if asked is None:
        return True
    if published is None or (published == 1) != (asked == 1):  # a dense net is no very dense sparse one
        return False
    return max(published, asked) <= NEAR * min(published, asked)


def _row(cells: dict[str, str]) -> Published:
    verified = cells["verified"]
    if verified not in ("true", "false"):
        raise ValueError(f"verified is {verified!r}, but must be true or false")
    value = _number(cells, "value")
    if value is None:
        raise ValueError("value is empty")
    return Published(
        paper=cells["paper"],
        where=cells["where"],
        data=cells["data"],
        model=cells["model"],
        method=cells["method"],
        density=_number(cells, "density"),
        metric=cells["metric"],
        value=value,
        plus_minus=_number(cells, "plus_minus"),
        epochs=_number(cells, "epochs"),
        source=cells["source"],
        verified=verified == "true",
    )


def _number(cells: dict[str, str], name: str) -> float | None:
    text = cells[name]
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
