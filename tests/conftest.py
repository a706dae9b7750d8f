"""Settings that every test shares: one thread, fixed seeds, hypothesis without deadlines; and runs without workers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("tombola", deadline=None, derandomize=True, database=None)
settings.load_profile("tombola")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is here by now stays; a garbage collection that goes through it takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # Trainers of others leave more, which wait for each other in all the tests after them


class Alone:
    """A crew of nobody but this process: it does one task after another. A worker takes seconds to begin."""

    def __init__(self, schedule: Any, how: Any, jobs: int, on_event: Any) -> None:
        self.schedule, self.how, self.on_event = schedule, replace(how, threads=1), on_event

    def work(self) -> None:
        from tombola.lab.runs.tasks import attempt_together

        while (task := self.schedule.next()) is not None:
            tasks = [task, *self.schedule.beside(task)]
            attempt_together(
                tasks, self.schedule.out, self.how, on_event=self.on_event, stop=lambda: False,
                saved=self.schedule.saved, ended=self._end,
            )  # fmt: skip

    def stop(self) -> None:
        """There is nobody to stop."""

    def kill(self) -> None:
        """Nor to end."""

    def _end(self, task: Any, error: str | None) -> None:
        if error is None:
            self.schedule.done(task)
        else:
            self.schedule.failed(task, error)


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands train in this process, one run after another, for tests to which it does not matter where."""
    import numba

    threads = numba.get_num_threads()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # a task sets both
    monkeypatch.setattr("tombola.lab.runs.parallel._Crew", Alone)
    yield
    numba.set_num_threads(threads)
