"""The files of a run on their way to a process elsewhere and back: what a task needs, and what it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tombola.files import write_atomically
from tombola.lab.errors import LabError
from tombola.lab.runs.records import ticket_name
from tombola.lab.runs.stages import plan
from tombola.lab.runs.store import PARTS, SEARCHED
from tombola.lab.runs.tasks import Task

_LAST = ("checkpoint-", "done.json")
"""Files that vouch for others, and so are written after them."""


@dataclass(frozen=True)
class Parcel:
    """Files of a run's folder, by their path in it, and the paths of those that are gone."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    def unpack(self, folder: Path) -> None:
        """Write and delete in ``folder`` what the parcel says; cut off at any moment, this leaves nothing torn.

        Raises:
            LabError: the folder cannot be written.
        """
        try:
            for name in sorted(self.files, key=_rank):
                path = _inside(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, self.files[name])
            for name in self.gone:
                _inside(folder, name).unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"{folder}: cannot be written: {error.strerror}; make room or mend it, then run the same again: "
                "it goes on from its last checkpoint"
            ) from error


def needed(task: Task, folder: Path) -> Parcel:
    """What ``task`` has to know of its run's ``folder``."""
    return Parcel({name: path.read_bytes() for name, path in _files(folder).items() if _needs(task, name)})


class Changes:
    """What has changed in ``folder`` since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = self._now()

    def parcel(self) -> Parcel:
        """The files that are new or changed, and those that are gone."""
        before, self._seen = self._seen, self._now()
        files = {
            name: (self.folder / name).read_bytes() for name, stamp in self._seen.items() if before.get(name) != stamp
        }
        return Parcel(files, tuple(before.keys() - self._seen.keys()))

    def _now(self) -> dict[str, tuple[int, int, int]]:
        stats = {name: path.stat() for name, path in _files(self.folder).items()}
        return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _files(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    kept = (path for path in found if path.name != "lock" and not path.name.endswith(".part"))
    return {path.relative_to(folder).as_posix(): path for path in kept}


def _needs(task: Task, name: str) -> bool:
    if task.place is None or name == "config.json":
        return True
    stage, inside = plan(task.config)[task.place], PurePosixPath(name)
    if not stage.apart:
        return inside.parts[0] not in (PARTS, "tickets")
    ticket = f"tickets/{ticket_name(stage.round)}"
    return name in (f"{PARTS}/{SEARCHED}", ticket) or inside.is_relative_to(f"{PARTS}/{stage.name}")


def _rank(name: str) -> int:
    last = PurePosixPath(name).name
    return next((rank for rank, start in enumerate(_LAST, start=1) if last.startswith(start)), 0)


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LabError(f"{folder}: a worker sent a file named {name!r}, which lies outside of it")
    return folder / path
