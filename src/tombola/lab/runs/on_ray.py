"""Runs on a Ray cluster: the tasks of ``tombola.lab.runs.schedule``, each with its CPUs and its share of a GPU.

The driver alone holds the run folders. A worker computes in a folder of its own that vanishes with it: what it needs of
the run comes with its task, and each checkpoint goes back through Ray's object store. So nothing but the data has to be
on a path that all machines see, a worker that is cut off from the cluster cannot do harm, and a task whose worker or
node dies begins again where its last checkpoint is. If the driver dies, its workers end; the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.allocator import for_children
from tombola.lab.runs.events import OnEvent
from tombola.lab.runs.how import How
from tombola.lab.runs.parallel import GRACE_SECONDS, carry_out
from tombola.lab.runs.parcels import Parcel, needed
from tombola.lab.runs.ray_task import mailbox, work
from tombola.lab.runs.schedule import Schedule
from tombola.lab.runs.tasks import Task

if TYPE_CHECKING:
    from types import ModuleType

_OBJECT_STORE = 200 * 2**20
"""Bytes of a cluster that is started here; what is larger goes through files."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What Ray sets aside for each task."""

    cpus: float = 1
    gpus: float = 0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def run_on_ray(
    configs: Iterable[RunConfig],
    out: Path,
    how: How,
    resources: Resources,
    *,
    address: str | None = None,
    jobs: int | None = None,
    on_event: OnEvent = lambda run, event: None,
) -> list[Path]:
    """As :func:`tombola.lab.runs.parallel.run_many`, on a Ray cluster.

    Args:
        configs: the runs; one that is there twice is executed once.
        out: folder of run folders, on this machine; the other machines need not see it.
        how: where and how each worker computes; ``data_dir`` and ``data_dirs`` are paths on the workers' machines.
        resources: of each task.
        address: ``ray://host:port`` for Ray's client; None: the cluster of ``RAY_ADDRESS`` or of this machine, or one
            that is started here for this call.
        jobs: tasks at once, at most; None: as many as the cluster has room for.
        on_event: called in this process, with the name of the run's folder and the event.

    Returns:
        The runs' folders, in the order of ``configs``.

    Raises:
        LabError: Ray is missing, no cluster answers or none of its nodes is large enough; or some runs failed, and the
            others were executed all the same.
        KeyboardInterrupt: Ctrl-C. The runs at work saved where they stand.
    """
    configs = list(configs)
    schedule = Schedule(out, split=True, hold=True, on_event=on_event)
    with _cluster(address) as ray:
        _check_room(ray, resources)
        return carry_out(configs, schedule, _Crew(ray, schedule, how, resources, jobs, on_event))


@contextmanager
def _cluster(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected: to a cluster that is there, or to one that is started and stopped here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError as error:
        raise LabError(f"--on ray: Ray is not installed here ({error}): pip install 'tombola[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    ours = not ray.is_initialized()
    try:
        if ours and address is not None:
            _ask(ray, address, quiet)
        elif ours:
            try:
                ray.init("auto", **quiet)
            except ConnectionError:
                if os.environ.get("RAY_ADDRESS"):
                    raise
                cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
                with for_children():
                    ray.init(
                        "local", num_cpus=cpus, object_store_memory=_OBJECT_STORE, include_dashboard=False, **quiet
                    )  # fmt: skip
    except Exception as error:  # Ray has many for a cluster that does not answer or is of another version
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        first, *_, last = (str(error).strip() or type(error).__name__).splitlines() * 2
        reason = f"{first} {last}" if first.endswith(":") else first  # then it is that of another process
        raise LabError(f"--on ray: no Ray cluster can be used at {where}: {reason}") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _ask(ray: ModuleType, address: str, options: dict[str, Any]) -> None:
    """Connect by Ray's client. The cluster forks a server for it, and now and then one crashes as it starts."""
    for _ in range(2):
        with contextlib.suppress(ConnectionAbortedError):
            ray.init(address, **options)
            return
    ray.init(address, **options)


def _check_room(ray: ModuleType, resources: Resources) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= resources.cpus and node.get("GPU", 0) >= resources.gpus for node in nodes):
        found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
        raise LabError(
            f"--on ray: no node of the cluster has {resources}, which each task is to have (the nodes have {found}); "
            "lower --cpus-per-task or --gpus-per-task"
        )


@dataclass
class _Attempt:
    """A task on its way. ``number`` tells its messages from those of other attempts."""

    task: Task
    number: int


class _Crew:
    """The tasks at work on the cluster."""

    def __init__(
        self,
        ray: ModuleType,
        schedule: Schedule,
        how: How,
        resources: Resources,
        jobs: int | None,
        on_event: OnEvent,
    ) -> None:
        self.ray, self.schedule, self.how, self.jobs, self.on_event = ray, schedule, how, jobs, on_event
        # a task that is done again is another one, with the files as they are then: not for Ray to retry
        self.remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(work)
        self.at: dict[Any, _Attempt] = {}
        self.attempts = 0
        self._hang_up_mailbox()

    def work(self) -> None:
        """Until nothing is left."""
        while True:
            while (self.jobs is None or len(self.at) < self.jobs) and (task := self.schedule.next()) is not None:
                self._send(task)
            if not self.at:
                return
            self._receive()

    def stop(self) -> None:
        """Ask the workers to save and leave, and give them a moment for it."""
        deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C ends the wait
            self.ray.get(self.mailbox.stop.remote())
            while self.at and (left := deadline - time.monotonic()) > 0:
                self._receive(left)

    def kill(self) -> None:
        """End what is left."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            for reference in self.at:
                self.ray.cancel(reference, force=True)
            self.ray.kill(self.mailbox)
        self.at.clear()

    def _hang_up_mailbox(self) -> None:
        here = self.ray.get_runtime_context().get_node_id()
        stay = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self.mailbox = self.ray.remote(num_cpus=0, scheduling_strategy=stay)(mailbox()).remote()
        self.post = self.mailbox.wait.remote()

    def _send(self, task: Task) -> None:
        self.attempts += 1
        try:
            parcel = needed(task, self.schedule.folder(task).root)
        except OSError as error:
            self.schedule.failed(task, str(error))
            return
        places = (str(Path.cwd()), str(self.schedule.out))
        reference = self.remote.remote(
            task.config.to_json(), task.place, parcel, self.how, self.mailbox, self.attempts, places
        )
        self.at[reference] = _Attempt(task, self.attempts)

    def _receive(self, timeout: float | None = None) -> None:
        """Wait for something to happen, and take it in: the messages before how their tasks ended."""
        found, _ = self.ray.wait([self.post, *self.at], num_returns=1, timeout=timeout)
        ready = found[0] if found else None
        try:
            letters = self.ray.get(self.mailbox.take.remote())
            if ready == self.post:
                self.ray.get(self.post)
                self.post = self.mailbox.wait.remote()
        except self.ray.exceptions.RayActorError as error:
            self._start_over(error)
            return
        for number, name, event, files, gone in letters:
            if event is not None:
                self.on_event(name, event)
            else:
                self._take_in(number, Parcel(files, gone))
        if ready in self.at:
            self._end(ready)

    def _take_in(self, number: int, parcel: Parcel) -> None:
        for reference, sent in self.at.items():
            if sent.number == number:  # and not that of a worker which was given up
                self.schedule.saved(sent.task)
                self._keep(reference, sent.task, parcel)
                return

    def _keep(self, reference: Any, task: Task, parcel: Parcel) -> bool:
        """Write what a worker sent into the run's folder."""
        try:
            parcel.unpack(self.schedule.folder(task).root)
        except LabError as error:
            if self.at.pop(reference, None) is not None:
                self.ray.cancel(reference, force=True)
            self.schedule.failed(task, str(error))
            return False
        return True

    def _end(self, reference: Any) -> None:
        task, errors = self.at.pop(reference).task, self.ray.exceptions
        try:
            ended = self.ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):
                self._died(task, error.cause)
            else:
                self.schedule.failed(task, " ".join(str(error.cause or error).split()))
            return
        except errors.RayError as error:
            self._died(task, error)
            return
        if not self._keep(reference, task, ended.parcel):
            return
        if ended.stopped:
            self.schedule.again(task)
        elif ended.error is not None:
            self.schedule.failed(task, ended.error)
        else:
            self.schedule.done(task)

    def _died(self, task: Task, error: Exception) -> None:
        self.schedule.died(task, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _start_over(self, error: Exception) -> None:
        """The mailbox is gone, and with it what nobody knows: all tasks at work begin again from what is here."""
        for reference in self.at:
            self.ray.cancel(reference, force=True)
        cut_off, self.at = list(self.at.values()), {}
        for sent in cut_off:
            self._died(sent.task, error)
        self._hang_up_mailbox()
