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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.allocator import for_children
from tombola.lab.runs.experiment import OnEvent
from tombola.lab.runs.tasks import How, Schedule, Task, attempt
from tombola.lab.runs.work import Event, Stopped

GRACE_SECONDS = 5.0  # after Ctrl-C, for the epochs at work to end and be saved


def run_many(
    configs: Iterable[RunConfig],
    out: Path,
    how: How | None = None,
    *,
    jobs: int = 1,
    on_event: OnEvent = lambda run, event: None,
) -> list[Path]:
    """Execute all runs in ``jobs`` processes, the longest first; those that are finished already are only looked at.

    With more than one process the stages of a search are shared out: see ``tombola.lab.runs.tasks``.

    Args:
        configs: the runs; one that is there twice is executed once.
        out: folder of run folders.
        how: where and how each process computes; None: with one thread on the CPU.
        jobs: worker processes.
        on_event: called in this process, with the name of the run's folder and the event.

    Returns:
        The runs' folders, in the order of ``configs``.

    Raises:
        LabError: some runs failed; the others were executed all the same.
        KeyboardInterrupt: Ctrl-C. The runs at work saved where they stand.
    """
    how = how or How()
    if jobs < 1 or how.threads < 1:
        raise LabError(f"jobs and threads must be 1 or more, not {jobs} and {how.threads}")
    configs = list(configs)
    schedule = Schedule(out, split=jobs > 1, hold=False, on_event=on_event)
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


class _Crew:
    """The workers, and what each is at."""

    def __init__(self, schedule: Schedule, how: How, jobs: int, on_event: OnEvent) -> None:
        self.schedule, self.how, self.jobs, self.on_event = schedule, how, jobs, on_event
        self.processes: dict[Connection, BaseProcess] = {}
        self.at: dict[Connection, Task | None] = {}

    def work(self) -> None:
        """Until nothing is left."""
        while True:
            while (idle := self._idle()) is not None or len(self.processes) < self.jobs:
                if (task := self.schedule.next()) is None:
                    break
                self._assign(idle or self._hire(), task)
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
        return next((connection for connection, task in self.at.items() if task is None), None)

    def _hire(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, self.schedule.out, self.how))
        with for_children():
            process.start()  # no daemon: that may not have children
        theirs.close()
        self.processes[mine] = process
        return mine

    def _assign(self, connection: Connection, task: Task) -> None:
        self.at[connection] = task
        with contextlib.suppress(OSError):  # a worker that is gone is buried when its pipe is read
            connection.send((task.config.to_json(), task.place))

    def _hear(self, connection: Connection, said: tuple[str, Event] | bool | str | None) -> None:
        """An event of a run; that it has saved (True); or how the task ended: with an error, or well (None)."""
        task = self.at[connection]
        if isinstance(said, tuple):
            self.on_event(*said)
            return
        assert task is not None
        if said is True:
            self.schedule.saved(task)
            return
        self.at[connection] = None
        if isinstance(said, str):
            self.schedule.failed(task, said)
        else:
            self.schedule.done(task)

    def _bury(self, connection: Connection) -> None:
        process, task = self.processes.pop(connection), self.at.pop(connection)
        process.join()
        connection.close()
        if task is not None:
            self.schedule.died(task, f"exit code {process.exitcode}")


def _worker(connection: Connection, out: Path, how: How) -> None:
    """A worker process: do the tasks that come through the pipe until None or the end of it comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on
    tasks: queue.SimpleQueue[tuple[str, int | None] | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def listen() -> None:
        while True:
            try:
                task = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone
            if task is None:
                stopping.set()
            tasks.put(task)

    threading.Thread(target=listen, daemon=True).start()
    while (said := tasks.get()) is not None:
        text, place = said
        task = Task(RunConfig.from_json(text), place)
        try:
            error = attempt(
                task, out, how, on_event=lambda *event: connection.send(event), stop=stopping.is_set,
                saved=lambda: connection.send(True),
            )  # fmt: skip
        except Stopped:
            return
        connection.send(error)
