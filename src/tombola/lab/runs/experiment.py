"""One run from its config to its last number, or several at once.

A run that was stopped, at whatever moment and however rudely, goes on from its last checkpoint and ends with the same
tickets and the same numbers as one that was never stopped.
"""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from tombola.lab.config import RunConfig
from tombola.lab.data import Data, Dataset, Tokens, load
from tombola.lab.errors import LabError
from tombola.lab.inputs import Inputs
from tombola.lab.runs.events import Event, OnEvent, Stopped
from tombola.lab.runs.how import ON_ONE_CORE, How
from tombola.lab.runs.stages import plan
from tombola.lab.runs.steps import Steps, finish
from tombola.lab.runs.team import ALONE, Team
from tombola.lab.runs.thin import check_device
from tombola.lab.runs.together import Member, Together, Weigh
from tombola.lab.runs.transplant import check
from tombola.lab.runs.weighing import weigh
from tombola.lab.runs.work import Run
from tombola.lab.runs.workshop import Workshop


class Load(Protocol):
    """Reads a data set, as :func:`tombola.lab.data.load` does."""

    def __call__(
        self,
        name: str,
        *,
        data_dir: Path | None,
        inputs: Inputs | None,
        device: torch.device | str,
        workers: int,
        tell: Callable[[str], None],
    ) -> Dataset:
        """The data set."""


def execute(
    config: RunConfig,
    out: Path,
    how: How = ON_ONE_CORE,
    *,
    place: int | None = None,
    team: Team = ALONE,
    on_event: OnEvent = lambda run, event: None,
    stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
) -> Path:
    """Run ``config`` to its end, from where it stands, in its folder below ``out``.

    Args:
        config: which run.
        out: folder of run folders.
        how: where and how to compute.
        place: None for the whole run; else only the stage at this place of its ``plan``, for a process that shares
            them out, holds the run and finishes it (``tombola.lab.runs.schedule``).
        team: the processes that train the run together, all of which call this.
        on_event: told how it goes: ``on_event(name of the run's folder, event)``.
        stop: asked after each epoch; True saves and raises ``Stopped``.
        saved: called whenever what may not be lost is on disk.

    Returns:
        The run's folder.

    Raises:
        LabError: settings, data or files do not fit together; the folder is damaged or in use.
        Stopped: ``stop`` said so.
    """
    with _surroundings(how.threads):
        return finish(executing(config, out, how, place=place, team=team, on_event=on_event, stop=stop, saved=saved))


def execute_together(
    configs: Sequence[RunConfig],
    out: Path,
    how: How = ON_ONE_CORE,
    *,
    ended: Callable[[str, Exception | None], None],
    on_event: OnEvent = lambda run, event: None,
    stop: Callable[[], bool] = lambda: False,
    saved: Callable[[str], None] = lambda name: None,
    weigh: Weigh = weigh,
) -> None:
    """Run all of ``configs`` to their ends, their steps computed as one where that is faster.

    Their numbers are those of the runs alone but for rounding. Arguments as for :func:`execute`, and

    Args:
        configs: that differ, but have the model and what belongs to its steps in common, to gain anything.
        saved, ended: as there, of each run by the name of its folder; the latter with what went wrong, or None.
        weigh: measures whether it is faster.

    Raises:
        Stopped: ``stop`` said so, and runs have saved where they stand.
    """
    shelf, stopped = _Shelf(), list[str]()

    def over(name: str, error: Exception | None) -> None:
        if isinstance(error, Stopped):
            stopped.append(name)
        else:
            ended(name, error)

    def member(config: RunConfig) -> Member:
        def make(clock: Callable[[], float]) -> Steps[Path]:
            return executing(
                config, out, how, on_event=on_event, stop=stop, saved=partial(saved, config.folder_name),
                read=shelf.load, clock=clock,
            )  # fmt: skip

        return Member(make, ended=partial(over, config.folder_name), device=torch.device(how.device))

    first = configs[0].folder_name
    together = Together(say=lambda text: on_event(first, {"event": "note", "text": text}), weigh=weigh)
    with _surroundings(how.threads):
        together.train([member(config) for config in configs])
    if stopped:
        raise Stopped


def executing(
    config: RunConfig,
    out: Path,
    how: How = ON_ONE_CORE,
    *,
    place: int | None = None,
    team: Team = ALONE,
    on_event: OnEvent = lambda run, event: None,
    stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
    read: Load = load,
    clock: Callable[[], float] = time.monotonic,
) -> Steps[Path]:
    """As :func:`execute`, waiting at each step of training for its loss and gradients.

    Between two of these it leaves nothing of the process changed but PyTorch's random generators.

    Args:
        read: gets data sets.
        clock: seconds that count as the run's.
    """
    if config.sparse:
        check_device(how.device)
    stage = None if place is None else plan(config)[place]
    with _disk(out / config.folder_name), team.folder(out, config, stage=stage, saved=saved) as folder:

        def emit(event: Event) -> None:
            on_event(folder.name, event)

        emit({"event": "start", "title": config.title, "total_epochs": config.total_epochs})
        if not folder.finished:
            state = folder.resume(warn=lambda text: emit({"event": "warning", "text": text}), device=how.device)
            first = state is None and not (stage is not None and stage.apart)
            run: Run | None = None

            def tell(text: str) -> None:
                """What is wrong with the data. What was said when the run began is not said again."""
                if run is not None:
                    run.notes.tell(text)
                elif first:
                    folder.record({"kind": "warning", "text": text})
                    emit({"event": "warning", "text": text})

            prepared = partial(_prepared, how=how, tell=tell, read=read)
            make, target = prepared(config), None
            if config.transfer is not None and (first or stage is None or stage.transferred):
                target = prepared(config.target)
                if said := check(make, target):
                    tell(said)
            for each, about in ((make, {}), (target, {"transferred": True})):
                if first and each is not None and isinstance(each.data, Data) and each.data.original is not None:
                    folder.record({"kind": "data", "original": each.data.original, **about})
            run = Run(folder, make, target, emit, how.checkpoint_share, stop, team, clock)
            yield from run.go(state) if place is None else run.go_to(place, state)
            if stage is None or stage.apart:
                folder.finish()
        if place is None:
            emit({"event": "done"})
        return folder.root


class _Shelf:
    """Data sets for several runs: one that is held in memory is read once."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, Path | None, Inputs | None], tuple[Dataset, list[str]]] = {}

    def load(
        self,
        name: str,
        *,
        data_dir: Path | None,
        inputs: Inputs | None,
        device: torch.device | str,
        workers: int,
        tell: Callable[[str], None],
    ) -> Dataset:
        """As :func:`tombola.lab.data.load`."""
        key = name, data_dir, inputs
        if key in self._held:
            data, told = self._held[key]
            for text in told:
                tell(text)
            return data
        told = []

        def heard(text: str) -> None:
            told.append(text)
            tell(text)

        data = load(name, data_dir=data_dir, inputs=inputs, device=device, workers=workers, tell=heard)
        if isinstance(data, Data | Tokens):  # others have processes or loaders at work
            self._held[key] = data, told
        return data


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Inside it, an error of the disk says that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE):
            raise
        raise LabError(
            f"{folder}: cannot be written: {error.strerror}; make room or mend it, then run the same again: "
            "it goes on from its last checkpoint"
        ) from error


def _prepared(config: RunConfig, *, how: How, tell: Callable[[str], None], read: Load) -> Workshop:
    """What makes the networks of ``config``, with its data, once it is sure that they fit together.

    Raises:
        LabError: they do not, or the data are missing or damaged.
    """
    data = read(
        config.data, data_dir=how.data_dirs.get(config.data, how.data_dir), inputs=config.inputs, device=how.device,
        workers=how.workers, tell=tell,
    )  # fmt: skip
    if config.examples is not None:
        if not isinstance(data, Data):
            raise LabError(f"examples: {config.data} is not held in memory as images, so leave it null")
        data = data.first(config.examples)
    make = Workshop(config=config, data=data, device=torch.device(how.device))
    make.check()
    return make


@contextmanager
def _surroundings(threads: int) -> Iterator[None]:
    """What of the process is otherwise while runs are at work: PyTorch's threads, and what is warned of."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="budget: ")  # a run says it once, when it begins
            warnings.filterwarnings("ignore", message="no weight is left in ")  # the records of each epoch say it
            yield
    finally:
        torch.set_num_threads(before)
