"""What a report shows: results grouped over seeds, each with what it cost and its controls; and how all is called."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tombola.lab.report.reading import Layer, Run

METHODS = {
    "dense": "Dense",
    "cs": "CS",
    "imp": "IMP",
    "iss": "ISS",
    "ss": "SS",
    "gmp": "GMP",
    "granet": "GraNet",
    "rigl": "RigL",
    "snfs": "SNFS",
    "set": "SET",
    "snip": "SNIP",
    "static": "Static",
}
CONTROLS = {"shuffled": "shuffled", "reinitialised": "re-initialised"}


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over seeds (`sd` is None for a single seed)."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One setting of one method at one round, over its seeds; round 0 is a network that was trained in one go.

    `epochs` is what this ticket alone costs: the search up to its round and its own training, `training`. `epochs_all`
    is what the curve costs as far as this row: the training of every ticket on the way too, and all of it for each
    setting of the method that was `tried`; controls are left out. `arithmetic` is that of this ticket alone, in epochs
    of the dense net. `multiply_adds` (for one example) and `bytes` are those of the network, `seconds` the wall time on
    `devices`. `loss` is in nats; `token` is what a text is made of, or empty. `bar` is the dense net that a sparse one
    is held against, and `good` is one, not empty, whose mean accuracy is at least that of its bar. `original`: whether
    the data of every seed are the publisher's own files; None: not known. `label` says that it is reduced, if it is.
    `valid` is the loss on the validation part of a text. `found_on` are the data that a transferred ticket was found
    on, or empty: its search took its epochs and arithmetic there, of which the latter is counted in epochs on `data`.
    """

    data: str
    model: str
    method: str
    setting: str
    group: str
    round: int
    last: bool
    seeds: tuple[int, ...]
    density: Stat
    kept: tuple[int, ...]
    maskable: int
    width: float
    accuracy: Stat
    loss: Stat | None
    token: str
    epochs: Stat
    epochs_all: Stat
    training: Stat
    arithmetic: Stat | None
    tried: int
    asked: float | None
    soft: Stat | None
    hard: Stat | None
    gap: Stat | None
    undecided: Stat | None
    dead: tuple[str, ...]
    layers: tuple[Layer, ...]
    controls: Mapping[str, Stat] = field(default_factory=dict)
    bar: Row | None = None
    good: bool = False
    original: bool | None = None
    multiply_adds: Stat | None = None
    bytes: Stat | None = None
    seconds: Stat | None = None
    devices: tuple[str, ...] = ()
    label: str = ""
    valid: Stat | None = None
    soft_loss: Stat | None = None
    hard_loss: Stat | None = None
    found_on: str = ""

    @property
    def dense(self) -> bool:
        """Whether this is a dense net and no ticket."""
        return self.method == "dense"

    @property
    def trained(self) -> bool:
        """Whether this is a sparse net that was trained in one go."""
        return not self.dense and self.round == 0

    @property
    def name(self) -> str:
        """Method and setting as a reader sees them, such as "CS s₀ = −0.05"."""
        return f"{method_name(self.method)} {setting_name(self.setting)}".strip()

    @property
    def family(self) -> str:
        """The name without the density that was asked for."""
        return without_density(self.name)

    @property
    def full_name(self) -> str:
        """The name, and of which round if there are rounds."""
        return f"{self.name}, round\N{NO-BREAK SPACE}{self.round}" if self.round else self.name


@dataclass(frozen=True)
class Task:
    """All rows of one model on one data set."""

    data: str
    model: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """That its rows are reduced, or some of them; empty if none is."""
        labels = dict.fromkeys(row.label for row in self.rows)
        some = "" if len(labels) == 1 else "partly "
        return some + ", ".join(label for label in labels if label) if any(labels) else ""

    @property
    def bars(self) -> tuple[Row, ...]:
        """The dense nets that sparse ones are held against, that of most of them first."""
        held = [row.bar for row in self.rows if row.bar is not None]
        often = Counter(bar.group for bar in held)
        found = {bar.group: bar for bar in held}
        return tuple(sorted(found.values(), key=lambda bar: (-often[bar.group], bar.training.mean)))

    @property
    def dense(self) -> Row | None:
        """The dense net that most sparse ones are held against; without any the longest. None: not run yet."""
        return next(iter(self.bars), None) or longest(self.rows)

    @property
    def tickets(self) -> tuple[Row, ...]:
        """Every row that is a ticket or was trained sparse."""
        return tuple(row for row in self.rows if not row.dense)

    @property
    def controls(self) -> tuple[str, ...]:
        """The controls that some ticket has."""
        named = {control for row in self.rows for control in row.controls}
        return tuple(sorted(named, key=lambda control: ([*CONTROLS, control].index(control), control)))

    @property
    def searched(self) -> bool:
        """Whether some ticket was searched, round by round."""
        return any(not row.trained for row in self.tickets)

    @property
    def noun(self) -> str:
        """What a sparse net is called: a ticket if it was searched."""
        return "ticket" if self.searched else "network"

    @property
    def swept(self) -> bool:
        """Whether several settings of a method were tried for some ticket."""
        return any(row.tried > 1 for row in self.rows)

    @property
    def dearer(self) -> bool:
        """Whether the curves cost more than some ticket alone."""
        return any(row.epochs_all.mean > row.epochs.mean for row in self.rows)


@dataclass(frozen=True)
class Summary:
    """Everything a report shows. `parts` are the runs again, each split by the data its networks were trained on."""

    tasks: tuple[Task, ...]
    runs: tuple[Run, ...]
    parts: tuple[Run, ...]

    @property
    def unfinished(self) -> tuple[Path, ...]:
        """Folders of the runs that have not come to their end."""
        return tuple(run.folder for run in self.runs if not run.finished)


def longest(rows: Iterable[Row]) -> Row | None:
    """The plainly trained dense net; if there are several, that with the most arithmetic or epochs, and of those the
    most accurate. None: there is none."""
    dense = [row for row in rows if row.dense]
    plain = [row for row in dense if not row.setting]
    others = [row for row in dense if not row.setting.startswith("equal epochs")]
    return max(plain or others, key=lambda row: ((row.arithmetic or row.epochs).mean, row.accuracy.mean), default=None)


def method_name(method: str) -> str:
    """The short name of a method as a reader knows it."""
    return METHODS.get(method, method)


def control_name(control: str) -> str:
    """The name of a control as a reader knows it."""
    return CONTROLS.get(control, control)


def without_density(setting: str) -> str:
    """A setting, or its name, but for the density that was asked for."""
    return re.sub(r"\s*density\s?=\s?\S+", "", setting).strip()


def setting_name(setting: str) -> str:
    """A setting as a reader sees it: "s0=-0.05" becomes "s₀ = −0.05"."""
    return setting.replace("s0=", "s₀=").replace("=-", "=−").replace("=", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def stat(values: Sequence[float]) -> Stat:
    """Mean and sample standard deviation of at least one value."""
    return Stat(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
