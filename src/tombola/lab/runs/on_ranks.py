"""Several processes, started by ``torchrun`` on one machine or on many, that train one run after another together.

Lightning Fabric connects them, and wraps the network for the gradients to be averaged. Each rank draws the whole of
each epoch's random numbers and takes its part of every batch, each batch norm sees the whole batch, and parts weigh as
much as they have examples: so a step is that of one process, but for the order in which numbers are added up. Rank 0
keeps the run's folder. The others work in copies of their own, so no folder has to be shared.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import distributed

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.launched import Launched
from tombola.lab.runs.events import Event, OnEvent, Stopped
from tombola.lab.runs.how import How
from tombola.lab.runs.parallel import outcome
from tombola.lab.runs.ranked import Ranked
from tombola.lab.runs.tasks import Task, attempt


def run_on_ranks(
    configs: Iterable[RunConfig],
    out: Path,
    how: How,
    here: Launched,
    *,
    on_event: OnEvent = lambda run, event: None,
) -> list[Path]:
    """Execute all runs, one after another, each by all ranks; to be called on all of them.

    Args:
        configs: the runs; one that is there twice is executed once.
        out: folder of run folders, which only rank 0 looks at.
        how: where and how each rank computes; ``device`` is ``cpu`` or ``cuda``, of which each takes that of its own.
        here: which of the ranks this is.
        on_event: called on rank 0, with the name of the run's folder and the event.

    Returns:
        The runs' folders, in the order of ``configs``.

    Raises:
        LabError: the ranks cannot be connected; or some runs failed, on all ranks alike, and the others were executed
            all the same; or one failed on this rank alone.
        KeyboardInterrupt: Ctrl-C, on any rank. The run at work saved where it stands.
    """
    configs = list(configs)
    team = Ranked(here, how.device)
    how = replace(how, device=str(team.device))
    errors: dict[str, str] = {}

    def tell(run: str, event: Event) -> None:
        if team.leads:
            on_event(run, event)

    with _asked_to_stop() as asked:
        for name, config in {config.folder_name: config for config in configs}.items():
            try:
                error = attempt(
                    Task(config, None), out, how, team=team, on_event=tell, stop=lambda: team.any(asked.is_set())
                )
            except Stopped:
                raise KeyboardInterrupt from None
            if error is None:
                continue
            if not team.all_failed():
                raise LabError(error)
            errors[name] = error
            tell(name, {"event": "error", "text": error})
    found = outcome(configs, out, errors)
    distributed.destroy_process_group()
    return found


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C; a second one interrupts at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
