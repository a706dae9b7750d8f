"""Several runs side by side, each in a process of its own: clean memory, one thread, and no shared fate.

The parent hands configs out and takes events in, over one pipe for each worker. A worker whose parent vanishes ends at
once, as after a ``kill -9``: the run's folder is free again and loses nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.allocator import for_children
from tombola.lab.runs.experiment import CHECKPOINT_SHARE, OnEvent, execute
from tombola.lab.runs.work import Event, Stopped

GRACE_SECONDS = 5.0  # after Ctrl-C, for the epochs at work to end and be saved


def run_many(
    configs: Iterable[RunConfig],
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "cpu",
    data_dir: Path | None = None,
    data_dirs: Mapping[str, Path] | None = None,
    workers: int = 0,
    on_event: OnEvent = lambda run, event: None,
    checkpoint_share: float = CHECKPOINT_SHARE,
) -> list[Path]:
    """Execute all runs, ``jobs`` at a time, the longest first; those that are finished already are only looked at.

    Args:
        configs: the runs; one that is there twice is executed once.
        out: folder of run folders.
        jobs: worker processes.
        threads: of each worker, for PyTorch and numba.
        device: where to compute.
        data_dir: where data sets that are files lie.
        data_dirs: the same for data sets of these names that lie elsewhere.
        workers: processes of each job that read images which do not stay in memory.
        on_event: called in this process, with the name of the run's folder and the event.
        checkpoint_share: of the time that may go into checkpoints, as for :func:`execute`.

    Returns:
        The runs' folders, in the order of ``configs``.

    Raises:
        LabError: some runs failed; the others were executed all the same.
        KeyboardInterrupt: Ctrl-C. The runs at work saved where they stand.
    """
    if jobs < 1 or threads < 1:
        raise LabError(f"jobs and threads must be 1 or more, not {jobs} and {threads}")
    configs = list(configs)
    names = [config.folder_name for config in configs]
    runs = dict(zip(names, configs, strict=True))
    options = {
        "out": out, "threads": threads, "device": device, "data_dir": data_dir, "data_dirs": data_dirs,
        "workers": workers, "checkpoint_share": checkpoint_share,
    }  # fmt: skip
    crew = _Crew(runs, options, on_event)
    try:
        crew.work(min(jobs, len(runs)))
    except KeyboardInterrupt:
        crew.stop()
        raise
    finally:
        crew.kill()
    if crew.errors:
        name, text = next(iter(crew.errors.items()))
        raise LabError(f"{len(crew.errors)} of {len(runs)} runs failed; the first is {name}: {text}")
    return [out / name for name in names]


class _Crew:
    """The workers, what each is at, and what is left to do."""

    def __init__(self, runs: dict[str, RunConfig], options: dict[str, Any], on_event: OnEvent) -> None:
        order = sorted(runs, key=lambda name: runs[name].total_epochs, reverse=True)
        self.todo, self.runs, self.options, self.on_event = deque(order), runs, options, on_event
        self.errors: dict[str, str] = {}
        self.processes: dict[Connection, BaseProcess] = {}
        self.at: dict[Connection, str | None] = {}

    def work(self, jobs: int) -> None:
        """Until nothing is left."""
        for _ in range(jobs):
            self._hire()
        while self.processes:
            for connection in wait(list(self.processes)):
                assert isinstance(connection, Connection)
                try:
                    self._hear(connection, *connection.recv())
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

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, self.options))  # a daemon may not have children
        with for_children():
            process.start()
        theirs.close()
        self.processes[mine], self.at[mine] = process, None
        self._assign(mine)

    def _assign(self, connection: Connection) -> None:
        name = self.todo.popleft() if self.todo else None
        self.at[connection] = name
        with contextlib.suppress(OSError):  # a worker that is gone is buried when its pipe is read
            connection.send(None if name is None else self.runs[name].to_json())

    def _hear(self, connection: Connection, name: str, event: Event) -> None:
        self.on_event(name, event)
        if event["event"] == "error":
            self.errors[name] = event["text"]
        if event["event"] in ("done", "error"):
            self._assign(connection)

    def _bury(self, connection: Connection) -> None:
        process, name = self.processes.pop(connection), self.at.pop(connection)
        process.join()
        connection.close()
        if name is not None:
            self.errors[name] = f"its worker process died (exit code {process.exitcode}); run the same again to go on"
            self.on_event(name, {"event": "error", "text": self.errors[name]})
            if self.todo:
                self._hire()


def _worker(connection: Connection, options: dict[str, Any]) -> None:
    """A worker process: execute what comes through the pipe until None or the end of it comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on
    os.environ["NUMBA_NUM_THREADS"] = str(options["threads"])  # read when numba is imported
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(options["threads"])
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
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
    while (task := tasks.get()) is not None:
        config = RunConfig.from_json(task)
        try:
            execute(config, on_event=lambda *event: connection.send(event), stop=stopping.is_set, **options)
        except Stopped:
            return
        except Exception as error:
            connection.send((config.folder_name, {"event": "error", "text": _one_line(error, config, options["out"])}))


_EXPECTED: Sequence[type[Exception]] = (LabError, ValueError, FloatingPointError, OSError)


def _one_line(error: Exception, config: RunConfig, out: Path) -> str:
    """What went wrong, in a line. An error that nobody foresaw leaves its traceback in the run's folder."""
    text = " ".join(str(error).split())
    if isinstance(error, tuple(_EXPECTED)):
        return text
    log = out / config.folder_name / "error.log"
    text = f"{type(error).__name__}: {text}"
    with contextlib.suppress(OSError):
        log.write_text(traceback.format_exc(), encoding="utf-8")
        text += f" (see {log})"
    return text
