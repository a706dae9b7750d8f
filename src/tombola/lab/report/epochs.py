"""What a run recorded after an epoch, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tombola.lab.errors import LabError
from tombola.lab.report.fields import field, finite

OLDER: Mapping[str, Any] = {"label": None, "hard_test_accuracy": None, "moved": {}, "scores": [], "transferred": False}
"""What a record may lack, and what that means."""


@dataclass(frozen=True)
class Moved:
    """Connections of all layers together: kept after the epoch, and dropped and grown since the measurement before."""

    kept: int
    dropped: int
    grown: int

    @property
    def before(self) -> int:
        """How many there were at the measurement before."""
        return self.kept + self.dropped - self.grown


@dataclass(frozen=True)
class Epoch:
    """The measurement after epoch `number`, from 1, of one training, which was on other data if it is `transferred`.

    `phase` and `round` say of which: "train" (round 0), "search", or "retrain" of that round's ticket; controls are
    marked by their `label`. `accuracy` is that of the network as it trains, `hard` that of its hard mask where this is
    another one. Empty or None is what was not recorded: `moved` by methods that move no connections and by older
    runs, `scores` (their histogram) but after the last epoch of a round with scores.
    """

    phase: str
    round: int
    label: str | None
    number: int
    train_loss: float | None
    accuracy: float
    hard: float | None
    moved: Moved | None
    scores: tuple[int, ...]
    transferred: bool = False


def read_epoch(record: Mapping[str, Any], place: str) -> Epoch:
    """The record of an epoch; `place` is where it stands, for messages.

    Raises:
        LabError: something is missing or damaged.
    """
    number, maybe = (int, float), (int, float, type(None))
    record = {**OLDER, **record}
    layers, scores = field(record, "moved", dict, place), field(record, "scores", list, place)
    if not all(type(count) is int and count >= 0 for count in scores):
        raise LabError(f"{place}: scores must be counts; the file is damaged or foreign")
    return Epoch(
        phase=field(record, "phase", str, place),
        round=field(record, "round", int, place),
        label=field(record, "label", (str, type(None)), place),
        number=field(record, "epoch", int, place),
        train_loss=finite(field(record, "train_loss", maybe, place)),
        accuracy=field(record, "test_accuracy", number, place),
        hard=finite(field(record, "hard_test_accuracy", maybe, place)),
        moved=_moved(layers, place) if layers else None,
        scores=tuple(scores),
        transferred=field(record, "transferred", bool, place),
    )


def _moved(layers: Mapping[str, Any], place: str) -> Moved:
    found = [field(layers, name, dict, place) for name in layers]
    sums = {key: sum(field(layer, key, int, place) for layer in found) for key in ("kept", "dropped", "grown")}
    return Moved(**sums)
