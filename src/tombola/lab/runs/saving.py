"""When a run at work makes checkpoints, and what may be wrong with one that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tombola.lab.errors import LabError
from tombola.lab.runs.store import RunFolder


class Checkpoints:
    """Of the run in ``folder``, into which ``share`` of the time by its ``clock`` may go."""

    def __init__(self, folder: RunFolder, share: float, clock: Callable[[], float]) -> None:
        self._folder, self._share, self._clock = folder, share, clock
        self._done, self._took = clock(), 0.0  # when the last one was done, what it took

    @property
    def due(self) -> bool:
        """Whether it is time for one."""
        return self._clock() - self._done >= self._took / self._share

    def save(self, state: dict[str, Any]) -> None:
        """Make one."""
        began = self._clock()
        self._folder.save(state)
        self._done = self._clock()
        self._took = self._done - began


@contextmanager
def restoring(folder: RunFolder, saved: dict[str, Any] | None) -> Iterator[None]:
    """Inside it, what goes wrong does so because ``saved``, if there is one, is of another model or other data."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if saved is None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise LabError(
            f"{folder.path}: its checkpoint does not fit the model and the data as they are now ({reason}); "
            "bring these back, or delete the folder to start this run over"
        ) from error


def midway(saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was saved, if that was in the middle of a stage; None if the next one is to begin."""
    return saved if saved is not None and saved["epoch"] > 0 else None
