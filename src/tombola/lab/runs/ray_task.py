"""What happens on a worker of a Ray cluster: one task, in a folder that vanishes with it. See ``on_ray``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from tombola.lab.config import RunConfig
from tombola.lab.runs.events import Event, Stopped
from tombola.lab.runs.how import How
from tombola.lab.runs.parcels import Changes, Parcel
from tombola.lab.runs.scratch import scratch
from tombola.lab.runs.tasks import Task, attempt


def mailbox() -> type:
    """The class of an actor beside the driver: workers put messages in, and learn whether they are to stop.

    Made in a function, and given plain values alone, so that its process need not import PyTorch.
    """

    class Mailbox:
        def __init__(self) -> None:
            self.letters: list[tuple[Any, ...]] = []
            self.there = asyncio.Event()
            self.stopping = False

        async def put(self, *letter: Any) -> bool:
            self.letters.append(letter)
            self.there.set()
            return self.stopping

        async def wait(self) -> None:
            await self.there.wait()

        async def take(self) -> list[tuple[Any, ...]]:
            letters, self.letters = self.letters, []
            self.there.clear()
            return letters

        async def stop(self) -> None:
            self.stopping = True

    return Mailbox


@dataclass(frozen=True)
class Ended:
    """How a task ended: with an error, in a line, or stopped, or well; and what has changed since its last message."""

    error: str | None
    stopped: bool
    parcel: Parcel


def work(
    config: str, place: int | None, parcel: Parcel, how: How, post: Any, number: int, places: tuple[str, str]
) -> Ended:
    """Do a task in a folder of its own. ``places`` are the driver's current folder and its folder of runs."""
    import ray

    here, out = places
    if here not in sys.path:
        sys.path.append(here)  # for models and data of the user's own, where the machines share the folder
    task = Task(RunConfig.from_json(config), place)
    stopping = stopped = False
    error = None

    def tell(name: str, event: Event | None, parcel: Parcel) -> None:
        nonlocal stopping
        stopping = ray.get(post.put.remote(number, name, event, parcel.files, parcel.gone))

    def on_event(name: str, event: Event) -> None:
        if event["event"] not in ("start", "done"):  # which are said where the run is held
            tell(name, event, Parcel())

    with scratch() as copies:
        folder = copies / task.run
        parcel.unpack(folder)
        changes = Changes(folder)
        try:
            error = attempt(
                task, copies, how, on_event=on_event, stop=lambda: stopping,
                saved=lambda: tell(task.run, None, changes.parcel()),
            )  # fmt: skip
        except Stopped:
            stopped = True
        return Ended(error and error.replace(str(copies), out), stopped, changes.parcel())
