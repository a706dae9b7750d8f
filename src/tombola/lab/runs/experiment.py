"""One run from its config to its last number.

A run that was stopped, at whatever moment and however rudely, goes on from its last checkpoint and ends with the same
tickets and the same numbers as one that was never stopped.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch

from tombola.lab.config import RunConfig
from tombola.lab.data import Data, load
from tombola.lab.errors import LabError
from tombola.lab.runs.stages import plan
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.thin import check_device
from tombola.lab.runs.transplant import check
from tombola.lab.runs.work import Event, Run
from tombola.lab.runs.workshop import Workshop

OnEvent: TypeAlias = Callable[[str, Event], None]

CHECKPOINT_SHARE = 0.02


def execute(
    config: RunConfig,
    out: Path,
    *,
    place: int | None = None,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    data_dir: Path | None = None,
    data_dirs: Mapping[str, Path] | None = None,
    workers: int = 0,
    on_event: OnEvent = lambda run, event: None,
    checkpoint_share: float = CHECKPOINT_SHARE,
    stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
) -> Path:
    """Run ``config`` to its end, from where it stands, in its folder below ``out``.

    Args:
        config: which run.
        out: folder of run folders.
        place: None for the whole run; else only the stage at this place of its ``plan``, for a process that shares
            them out, holds the run and finishes it (``tombola.lab.runs.tasks``).
        device: where to compute. Numbers of one device are repeatable on the CPU, and close on a GPU.
        threads: of PyTorch, while this runs; None leaves them alone. Numbers may depend on it in the last bits.
        data_dir: where data sets that are files lie.
        data_dirs: the same for data sets of these names that lie elsewhere.
        workers: processes that read images which do not stay in memory.
        on_event: told how it goes: ``on_event(name of the run's folder, event)``.
        checkpoint_share: of the time that may go into checkpoints, which are made at the ends of epochs: small runs
            save every second or so, large ones more rarely. ``math.inf``: at the end of each epoch.
        stop: asked after each epoch; True saves and raises ``Stopped``.
        saved: called whenever what may not be lost is on disk.

    Returns:
        The run's folder.

    Raises:
        LabError: settings, data or files do not fit together; the folder is damaged or in use.
        Stopped: ``stop`` said so.
    """
    if config.sparse:
        check_device(device)
    stage = None if place is None else plan(config)[place]
    with RunFolder(out, config, stage=stage, saved=saved) as folder, _threads(threads), _disk(folder.root), _quiet():

        def emit(event: Event) -> None:
            on_event(folder.name, event)

        emit({"event": "start", "title": config.title, "total_epochs": config.total_epochs})
        if not folder.finished:
            state = folder.resume(warn=lambda text: emit({"event": "warning", "text": text}), device=device)
            first = state is None and not (stage is not None and stage.apart)
            run: Run | None = None

            def tell(text: str) -> None:
                """What is wrong with the data. What was said when the run began is not said again."""
                if run is not None:
                    run.tell(text)
                elif first:
                    folder.record({"kind": "warning", "text": text})
                    emit({"event": "warning", "text": text})

            def prepared(config: RunConfig) -> Workshop:
                place = (data_dirs or {}).get(config.data, data_dir)
                return _prepared(config, data_dir=place, device=device, workers=workers, tell=tell)

            make, target = prepared(config), None
            if config.transfer is not None and (first or stage is None or stage.transferred):
                target = prepared(config.target)
                if said := check(make, target):
                    tell(said)
            for each, about in ((make, {}), (target, {"transferred": True})):
                if first and each is not None and isinstance(each.data, Data) and each.data.original is not None:
                    folder.record({"kind": "data", "original": each.data.original, **about})
            run = Run(folder, make, target, emit, checkpoint_share, stop)
            if place is None:
                run.go(state)
            else:
                run.go_to(place, state)
            if stage is None or stage.apart:
                folder.finish()
        if place is None:
            emit({"event": "done"})
        return folder.root


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside it, no attachment warns of layers that keep nothing: records say so of every epoch and result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no weight is left in ")
        yield


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


def _prepared(
    config: RunConfig, *, data_dir: Path | None, device: torch.device | str, workers: int, tell: Callable[[str], None]
) -> Workshop:
    """What makes the networks of ``config``, with its data, once it is sure that they fit together.

    Raises:
        LabError: they do not, or the data are missing or damaged.
    """
    data = load(config.data, data_dir=data_dir, inputs=config.inputs, device=device, workers=workers, tell=tell)
    if config.examples is not None:
        if not isinstance(data, Data):
            raise LabError(f"examples: {config.data} is not held in memory as images, so leave it null")
        data = data.first(config.examples)
    make = Workshop(config=config, data=data, device=torch.device(device))
    make.check()
    return make


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
