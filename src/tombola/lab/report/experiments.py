"""For which experiments of the papers the runs of a folder were made, and at which scale: experiments.json in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tombola.files import write_atomically
from tombola.lab.errors import LabError
from tombola.lab.places import made

FILE = "experiments.json"
FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment of a paper whose runs lie in a folder.

    `title` names paper and figure, `about` says what it does and where it departs from the paper; `runs` are the names
    of its run folders.
    """

    name: str
    title: str
    about: str
    scale: str
    runs: tuple[str, ...]

    @property
    def label(self) -> str:
        """What everything of it must say; empty at full scale."""
        return reduced(self.scale)


def reduced(scale: str) -> str:
    """What everything of this scale must say: "reduced (smoke scale)"; empty at full scale and for no scale."""
    return "" if scale in ("", FULL) else f"reduced ({scale} scale)"


def remember(out: Path, experiment: Experiment) -> None:
    """Note that `experiment` has its runs in `out`; the same experiment at the same scale is noted once.

    Raises:
        LabError: the folder cannot be written to, or what is noted there is damaged.
    """
    known = [e for e in experiments(out) if (e.name, e.scale) != (experiment.name, experiment.scale)]
    before = [e for e in experiments(out) if e not in known]
    runs = dict.fromkeys(run for e in (*before, experiment) for run in e.runs)
    entries = [*known, Experiment(**{**asdict(experiment), "runs": tuple(runs)})]
    made(out)
    try:
        write_atomically(out / FILE, (json.dumps([asdict(e) for e in entries], indent=1) + "\n").encode())
    except OSError as error:
        raise LabError(f"{out}: cannot be written to: {error.strerror}; choose another folder with --out") from None


def experiments(out: Path) -> list[Experiment]:
    """The experiments that have their runs in `out`.

    Raises:
        LabError: what is noted there is damaged.
    """
    path = out / FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [Experiment(**{**entry, "runs": tuple(map(str, entry["runs"]))}) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{path}: is damaged ({error}); delete it and run the same command again") from None
    return found


def scale_of(run: Path) -> str:
    """The scale of the experiment that a run folder was made for, the smallest if it was for several; empty: none."""
    scales = [e.scale for e in experiments(run.parent) if run.name in e.runs]
    return next((scale for scale in scales if scale != FULL), scales[0] if scales else "")


def of_folders(runs: Iterable[Path]) -> list[Experiment]:
    """The experiments that some of these run folders were made for, each once."""
    found: dict[tuple[str, str], Experiment] = {}
    for run in runs:
        found |= {(e.name, e.scale): e for e in experiments(run.parent) if run.name in e.runs}
    return list(found.values())
