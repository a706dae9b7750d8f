"""A piece of a run, done in this process."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.events import OnEvent, Stopped
from tombola.lab.runs.experiment import execute, execute_together
from tombola.lab.runs.how import How
from tombola.lab.runs.team import ALONE, Team


@dataclass(frozen=True)
class Task:
    """A piece of a run that one process does in one go: the stage at ``place`` of its plan, or all of it (None)."""

    config: RunConfig = field(compare=False)
    place: int | None
    run: str = field(init=False)  # the name of its folder

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", self.config.folder_name)


def attempt(
    task: Task,
    out: Path,
    how: How,
    *,
    team: Team = ALONE,
    on_event: OnEvent,
    stop: Callable[[], bool],
    saved: Callable[[], None] = lambda: None,
) -> str | None:
    """Do a task in this process, or this process's part of it: what went wrong, in a line, or None.

    Raises:
        Stopped: ``stop`` said so.
    """
    _numba_threads(how.threads)
    try:
        execute(task.config, out, how, place=task.place, team=team, on_event=on_event, stop=stop, saved=saved)
    except Stopped:
        raise
    except Exception as error:
        return _one_line(error, out / task.run)
    return None


def attempt_together(
    tasks: Sequence[Task],
    out: Path,
    how: How,
    *,
    on_event: OnEvent,
    stop: Callable[[], bool],
    saved: Callable[[Task], None] = lambda task: None,
    ended: Callable[[Task, str | None], None],
) -> None:
    """Do one task, or whole runs at once, in this process; ``ended`` is told of each as soon as that is over: what went
    wrong, in a line, or None; and ``saved`` whenever what may not be lost of it is on disk.

    Raises:
        Stopped: ``stop`` said so.
    """
    if len(tasks) == 1:
        one = tasks[0]
        ended(one, attempt(one, out, how, on_event=on_event, stop=stop, saved=lambda: saved(one)))
        return
    by_name = {task.run: task for task in tasks}

    def over(name: str, error: Exception | None) -> None:
        ended(by_name[name], None if error is None else _one_line(error, out / name))

    _numba_threads(how.threads)
    execute_together(
        [task.config for task in tasks], out, how, ended=over, on_event=on_event, stop=stop,
        saved=lambda name: saved(by_name[name]),
    )  # fmt: skip


def _numba_threads(threads: int) -> None:
    os.environ["NUMBA_NUM_THREADS"] = str(threads)  # read when numba is imported
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(threads)


_EXPECTED = (LabError, ValueError, FloatingPointError, OSError)


def _one_line(error: Exception, folder: Path) -> str:
    """What went wrong, in a line. An error that nobody foresaw leaves its traceback in the run's folder."""
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED):
        return text
    log = folder / "error.log"
    text = f"{type(error).__name__}: {text}"
    with contextlib.suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        text += f" (see {log})"
    return text
