"""Several runs side by side, each in a process of its own: clean memory, one thread, and no shared fate.

The parent hands tasks out and takes events in, over one pipe for each worker. A task whose worker dies is done again by
another one, from its last checkpoint. A worker whose parent vanishes ends at once, as after a ``kill -9``: the run's
folder is free again and loses nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.allocator import for_children
from tombola.lab.runs.events import Event, OnEvent, Stopped
from tombola.lab.runs.how import ON_ONE_CORE, How
from tombola.lab.runs.schedule import Schedule
from tombola.lab.runs.tasks import Task, attempt_together

GRACE_SECONDS = 5.0  # after Ctrl-C, for the epochs at work to end and be saved


def run_many(
    configs: Iterable[RunConfig],
    out: Path,
    how: How = ON_ONE_CORE,
    *,
    jobs: int = 1,
    on_event: OnEvent = lambda run, event: None,
) -> list[Path]:
    """Execute all runs in ``jobs`` processes, the longest first; those that are finished already are only looked at.

    With more than one process the stages of a search are shared out, but for those of runs that one process trains at
    once (``how.together``): see ``tombola.lab.runs.schedule``.

    Args:
        configs: the runs; one that is there twice is executed once.
        out: folder of run folders.
        how: where and how each process computes.
        jobs: worker processes.
        on_event: called in this process, with the name of the run's folder and the event.

    Returns:
        The runs' folders, in the order of ``configs``.

    Raises:
        LabError: some runs failed; the others were executed all the same.
        KeyboardInterrupt: Ctrl-C. The runs at work saved where they stand.
    """
    if jobs < 1 or how.threads < 1:
        raise LabError(f"jobs and threads must be 1 or more, not {jobs} and {how.threads}")
    configs = list(configs)
    schedule = Schedule(out, split=jobs > 1, hold=False, on_event=on_event, together=how.together, jobs=jobs)
    return carry_out(configs, schedule, _Crew(schedule, how, jobs, on_event))


class Crew(Protocol):
    """Whoever does the tasks of a schedule."""

    def work(self) -> None:
        """Until nothing is left."""

    def stop(self) -> None:
        """Ask the workers to save and leave, and give them a moment for it."""

    def kill(self) -> None:
        """End what is left."""


def carry_out(configs: Sequence[RunConfig], schedule: Schedule, crew: Crew) -> list[Path]:
    """Have the crew do all runs: their folders.

    Raises:
        LabError: some failed; the others were executed all the same.
        KeyboardInterrupt: Ctrl-C. The runs at work saved where they stand.
    """
    try:
        schedule.add(configs)
        crew.work()
    except KeyboardInterrupt:
        crew.stop()
        raise
    finally:
        crew.kill()
        schedule.close()
    return outcome(configs, schedule.out, schedule.errors)


def outcome(configs: Sequence[RunConfig], out: Path, errors: Mapping[str, str]) -> list[Path]:
    """The folders of the runs.

    Raises:
        LabError: there are errors (run -> text).
    """
    names = [config.folder_name for config in configs]
    if errors:
        name, text = next(iter(errors.items()))
        raise LabError(f"{len(errors)} of {len(set(names))} runs failed; the first is {name}: {text}")
    return [out / name for name in names]


@dataclass(frozen=True)
class _Saved:
    """What this run has done so far cannot be lost any more."""

    run: str


@dataclass(frozen=True)
class _Ended:
    """How a task of this run ended: with an error, in a line, or well (None)."""

    run: str
    error: str | None


class _Crew:
    """The workers, and what each is at."""

    def __init__(self, schedule: Schedule, how: How, jobs: int, on_event: OnEvent) -> None:
        self.schedule, self.how, self.jobs, self.on_event = schedule, how, jobs, on_event
        self.processes: dict[Connection, BaseProcess] = {}
        self.at: dict[Connection, list[Task]] = {}  # none: idle

    def work(self) -> None:
        """Until nothing is left."""
        while True:
            while (idle := self._idle()) is not None or len(self.processes) < self.jobs:
                if (task := self.schedule.next()) is None:
                    break
                self._assign(idle or self._hire(), [task, *self.schedule.beside(task)])
            if not any(self.at.values()):
                break
            for connection in wait(list(self.processes)):
                assert isinstance(connection, Connection)
                try:
                    self._hear(connection, connection.recv())
                except (EOFError, OSError):
                    self._bury(connection)

    def stop(self) -> None:
        """Ask the workers to save and leave, and give them a moment for it."""
        deadline = time.monotonic() + GRACE_SECONDS
        for connection in self.processes:
            with contextlib.suppress(OSError):
                connection.send(None)
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C ends the wait
            for process in self.processes.values():
                process.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End what is left."""
        for connection, process in self.processes.items():
            process.kill()
            process.join()
            connection.close()
        self.processes.clear()

    def _idle(self) -> Connection | None:
        return next((connection for connection, tasks in self.at.items() if not tasks), None)

    def _hire(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, self.schedule.out, self.how))
        with for_children():
            process.start()  # no daemon: that may not have children
        theirs.close()
        self.processes[mine] = process
        return mine

    def _assign(self, connection: Connection, tasks: list[Task]) -> None:
        self.at[connection] = tasks
        with contextlib.suppress(OSError):  # a worker that is gone is buried when its pipe is read
            connection.send([(task.config.to_json(), task.place) for task in tasks])

    def _hear(self, connection: Connection, said: tuple[str, Event] | _Saved | _Ended) -> None:
        """An event of a run, that one has saved, or how a task ended."""
        if isinstance(said, tuple):
            self.on_event(*said)
            return
        tasks = self.at[connection]
        task = next(task for task in tasks if task.run == said.run)
        if isinstance(said, _Saved):
            self.schedule.saved(task)
            return
        tasks.remove(task)
        if said.error is None:
            self.schedule.done(task)
        else:
            self.schedule.failed(task, said.error)

    def _bury(self, connection: Connection) -> None:
        process, tasks = self.processes.pop(connection), self.at.pop(connection)
        process.join()
        connection.close()
        for task in tasks:
            self.schedule.died(task, f"exit code {process.exitcode}")


def _worker(connection: Connection, out: Path, how: How) -> None:
    """A worker process: do the tasks that come through the pipe, lists of those to be done at once, until None or the
    end of it comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on
    lists: queue.SimpleQueue[list[tuple[str, int | None]] | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def listen() -> None:
        while True:
            try:
                tasks = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone
            if tasks is None:
                stopping.set()
            lists.put(tasks)

    threading.Thread(target=listen, daemon=True).start()
    while (said := lists.get()) is not None:
        tasks = [Task(RunConfig.from_json(text), place) for text, place in said]
        try:
            attempt_together(
                tasks, out, how, on_event=lambda *event: connection.send(event), stop=stopping.is_set,
                saved=lambda task: connection.send(_Saved(task.run)),
                ended=lambda task, error: connection.send(_Ended(task.run, error)),
            )  # fmt: skip
        except Stopped:
            return
