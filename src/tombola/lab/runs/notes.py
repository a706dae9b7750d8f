"""What a person should know of a run, among its records and as events."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tombola.lab.runs.events import Event
from tombola.lab.runs.store import RunFolder


class Notes:
    """Of the run in ``folder``, whose events go to ``emit``.

    ``told``, of what was compiled, and of data that were read on the way, survives a stop by being saved.
    """

    def __init__(self, folder: RunFolder, emit: Callable[[Event], None]) -> None:
        self.told: list[str] = []
        self._folder, self._emit = folder, emit

    def tell(self, text: str) -> None:
        """Record what a person should know of this run, once."""
        if self.note(text):
            self._emit({"event": "warning", "text": text})

    def note(self, text: str) -> bool:
        """The same among the records alone; whether it is new."""
        if text in self.told:
            return False
        self.told.append(text)
        self._folder.record({"kind": "warning", "text": text})
        return True

    @contextmanager
    def python_warnings(self, *, silent: bool = False) -> Iterator[None]:
        """Turn what the library warns of into records and events, or into nothing if ``silent``."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in () if silent else caught:
            self._folder.record({"kind": "warning", "text": str(warning.message)})
            self._emit({"event": "warning", "text": str(warning.message)})
