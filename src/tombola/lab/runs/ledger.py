"""What a run has cost so far: the arithmetic of its search, and the time that each of its stages took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tombola.lab.runs.stages import Stage
from tombola.lab.runs.workshop import Workshop
from tombola.methods.magnitude import IMP


class Ledger:
    """Keeps count for the run of ``make``, by its ``clock``.

    ``seconds`` (place of a stage -> seconds) survives a stop by being saved.
    """

    def __init__(self, make: Workshop, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self.make, self.stages, self._clock = make, stages, clock
        self.seconds: dict[str, float] = {}
        self._since = self._clock()

    def begin(self) -> None:
        """Time counts from now on."""
        self._since = self._clock()

    def count(self, place: int) -> None:
        """All time since it was counted last goes to the stage at this place."""
        now = self._clock()
        self.seconds[str(place)] = self.seconds.get(str(place), 0.0) + now - self._since
        self._since = now

    def seconds_of(self, stage: Stage, place: int) -> float:
        """What the stage at this place took, and each round of the search up to that of ``stage``."""
        return spent(self.stages, self.seconds, stage, place)

    def arithmetic_of(
        self, round_: int, counts: Mapping[str, int], searched: Mapping[str, Mapping[str, Any]], there: Workshop
    ) -> float | None:
        """Multiply-adds of the search up to a round and of training its ticket, in epochs of the dense net.

        Scores are learnt at the cost of the dense net; IMP trains the ticket of the round before. None: they cannot be
        counted.

        Args:
            round_: the ticket's.
            counts: kept weights of each masked layer in it.
            searched: round -> a record with the ``share`` of its ticket.
            there: where the ticket is trained; for other data than those of the search an epoch is one on these.
        """
        dense = self.make.share({})
        before = [searched[str(r)].get("share") for r in range(1, round_)]
        shares = [dense, *(before if isinstance(self.make.config.method, IMP) else [dense] * len(before))]
        known: list[float] = [share for share in (*shares, there.share(counts)) if share is not None]
        if len(known) != round_ + 1:
            return None
        if there is self.make:
            return sum(known) * self.make.config.epochs
        here, elsewhere = self.make.epoch_cost, there.epoch_cost
        assert here is not None
        assert elsewhere is not None
        return sum(known[:-1]) * self.make.config.epochs * here / elsewhere + known[-1] * there.config.epochs


def spent(stages: Sequence[Stage], seconds: Mapping[str, float], stage: Stage, place: int) -> float:
    """What the stage at this place took, and each round of the search up to that of ``stage``. ``seconds``: place of a
    stage -> its own."""
    found = [number for number, other in enumerate(stages) if other.phase in ("train", "search")]
    return sum(seconds.get(str(number), 0.0) for number in {*found[: stage.round], place})
