"""Which pieces of which runs can be done now: what the processes of one machine and those of a cluster share.

A run with a search is one task a stage: each round waits for the one before it, each retraining and control for the
round that its ticket comes from. Another run is one task. So is each of several runs that one process trains at once:
their tasks go to it together. Whoever shares the stages of a run out holds its folder, and
puts it together when all of them are done: the same bytes as of a run that did one stage after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.alike import groups
from tombola.lab.runs.events import OnEvent
from tombola.lab.runs.ledger import spent
from tombola.lab.runs.stages import plan
from tombola.lab.runs.store import RunFolder
from tombola.lab.runs.tasks import Task

ATTEMPTS = 3
"""Deaths of a task's workers, with no checkpoint between them, after which it is given up."""


@dataclass
class _Run:
    """What is left of a run. ``folder`` is open while its stages are shared out."""

    config: RunConfig
    folder: RunFolder | None
    left: set[Task]
    done: set[int] = field(default_factory=set)  # places

    def ready(self) -> list[Task]:
        stages = plan(self.config)

        def can(place: int | None) -> bool:
            if place is None:
                return True
            before = stages[place].round - 1 if stages[place].apart else place - 1
            return before < 0 or before in self.done

        return [task for task in self.left if can(task.place)]

    def length(self, task: Task) -> int:
        """Epochs from the task's beginning to the end of the run if there are processes for everything."""
        if task.place is None:
            return self.config.total_epochs
        stages = plan(self.config)
        if stages[task.place].apart:
            return stages[task.place].epochs
        rounds = self.config.epochs * (self.config.rounds - task.place)
        return rounds + max((stage.epochs for stage in stages if stage.apart), default=0)


class Schedule:
    """The tasks of all runs, the longest first.

    Args:
        out: folder of run folders.
        split: whether the stages of a search are shared out.
        hold: whether the folders of other runs are held too, because whoever does the work cannot.
        together: how many runs one process trains at once, at most.
        jobs: how many processes there will be.
        on_event: told how it goes with what is done here: ``on_event(name of the run's folder, event)``.

    Attributes:
        errors: run -> what went wrong with it, in a line.
    """

    def __init__(
        self, out: Path, *, split: bool, hold: bool, on_event: OnEvent, together: int = 1, jobs: int = 1
    ) -> None:
        self.out, self.split, self.hold, self.on_event = out, split, hold, on_event
        self.errors: dict[str, str] = {}
        self._together, self._jobs = together, jobs
        self._groups: dict[str, frozenset[str]] = {}  # run -> those that one process trains at once, itself among them
        self._runs: dict[str, _Run] = {}
        self._at: set[Task] = set()
        self._deaths: dict[Task, int] = {}  # since the last checkpoint

    def add(self, configs: Iterable[RunConfig], *, patience: float = 10.0) -> None:
        """Take up the runs, from where they stand. One that another process works on is an error of that run."""
        configs = list(configs)
        if self._together > 1:
            for group in groups(configs, self._together, jobs=self._jobs):
                names = frozenset(config.folder_name for config in group)
                self._groups.update(dict.fromkeys(names, names))
        for name, config in {config.folder_name: config for config in configs}.items():
            try:
                run = self._open(config, patience)
            except LabError as error:
                self._wrong(name, str(error))
                patience = 0.0  # they have waited enough, all together
                continue
            if run is not None:
                self._runs[name] = run
                self._close_if_done(name)

    def next(self) -> Task | None:
        """A task that can be done now, the one with the longest way to the end; it counts as being at work then."""
        ready = [(run.length(task), task) for run in self._runs.values() for task in run.ready()]
        if not ready:
            return None
        _, task = max(ready, key=lambda entry: (entry[0], entry[1].run, -(entry[1].place or 0)))
        self._runs[task.run].left.discard(task)
        self._at.add(task)
        return task

    def beside(self, task: Task) -> list[Task]:
        """The tasks that are to be done at once with this one; they count as being at work then, too."""
        names = sorted(self._groups.get(task.run, frozenset()) - {task.run})
        tasks = [other for name in names if name in self._runs for other in self._runs[name].ready()]
        for other in tasks:
            self._runs[other.run].left.discard(other)
            self._at.add(other)
        return tasks

    def done(self, task: Task) -> None:
        """The task is finished; so is its run, if it was the last."""
        self._at.discard(task)
        run = self._runs.get(task.run)
        if run is None:
            return
        if task.place is not None:
            run.done.add(task.place)
        self._close_if_done(task.run)

    def again(self, task: Task) -> None:
        """The task was cut off, and is to be done again."""
        self._at.discard(task)
        if (run := self._runs.get(task.run)) is not None:
            run.left.add(task)

    def saved(self, task: Task) -> None:
        """What the task has done so far cannot be lost any more."""
        self._deaths.pop(task, None)

    def died(self, task: Task, reason: str) -> None:
        """The process at the task died: the task is done again from its last checkpoint, or given up if there were too
        many deaths since."""
        self._deaths[task] = self._deaths.get(task, 0) + 1
        if self._deaths[task] >= ATTEMPTS or task.run in self.errors:
            text = f"its workers died {ATTEMPTS} times without a checkpoint between, at last: {reason}"
            self.failed(task, f"{text}; run the same again to go on")
            return
        again = f"a worker died ({reason}); another one goes on from the last checkpoint"
        self.on_event(task.run, {"event": "warning", "text": again})
        self.again(task)

    def failed(self, task: Task, text: str) -> None:
        """The task cannot be done, and so no other of its run."""
        self._at.discard(task)
        self._wrong(task.run, text)
        if (run := self._runs.get(task.run)) is not None:
            run.left.clear()
        self._close_if_done(task.run)

    def close(self) -> None:
        """Let go of all folders."""
        for run in self._runs.values():
            if run.folder is not None:
                run.folder.close()
        self._runs.clear()

    def folder(self, task: Task) -> RunFolder:
        """The folder of a task's run, which this process holds."""
        folder = self._runs[task.run].folder
        assert folder is not None
        return folder

    def _open(self, config: RunConfig, patience: float) -> _Run | None:
        split = self.split and config.searches and config.folder_name not in self._groups
        if not (split or self.hold):
            return _Run(config, None, {Task(config, None)})
        folder = RunFolder(self.out, config, patience=patience)
        try:
            self.on_event(folder.name, {"event": "start", "title": config.title, "total_epochs": config.total_epochs})
            if folder.finished:
                folder.close()
                self.on_event(folder.name, {"event": "done"})
                return None
            run = _Run(config, folder, {Task(config, None)})
            if split and not self._share_out(run, folder) and not self.hold:
                folder.close()
                run.folder = None
            return run
        except BaseException:
            folder.close()
            raise

    def _share_out(self, run: _Run, folder: RunFolder) -> bool:
        """Make each stage that is left a task, unless the run stands where one process has to go on."""
        state = folder.resume(warn=lambda text: self.on_event(folder.name, {"event": "warning", "text": text}))
        folder.rest()
        position = state["stage"] if state is not None else 0
        stages = plan(run.config)
        if state is not None and state["epoch"] > 0 and stages[position].apart:
            return False  # in the middle of a retraining, among the run's own records
        if state is not None:
            folder.remember(state["searched"], state.get("told", []))
        run.done = {place for place, stage in enumerate(stages) if place < position or folder.has_finished(stage)}
        run.left = {Task(run.config, place) for place in range(len(stages)) if place not in run.done}
        self.on_event(folder.name, {"event": "resumed", "epochs": {place: stages[place].epochs for place in run.done}})
        return True

    def _close_if_done(self, name: str) -> None:
        run = self._runs.get(name)
        if run is None or run.left or any(task.run == name for task in self._at):
            return
        del self._runs[name]
        if run.folder is None:
            return
        try:
            if name not in self.errors and run.done:
                put_together(run.folder)
            run.folder.close()
        except (LabError, OSError) as error:
            run.folder.close()
            self._wrong(name, str(error))
            return
        if name not in self.errors:
            self.on_event(name, {"event": "done"})

    def _wrong(self, name: str, text: str) -> None:
        if name not in self.errors:
            self.errors[name] = text
            self.on_event(name, {"event": "error", "text": text})


def put_together(folder: RunFolder) -> None:
    """Take in the records of the stages that were shared out, in their order, and mark the run as finished.

    Raises:
        LabError: one of them is not finished.
    """
    state = folder.resume(warn=lambda text: None)
    if state is None:
        raise LabError(f"{folder.path}: has no checkpoint; run the same again to go on")
    stages, seconds, told = plan(folder.config), dict(state["seconds"]), list(state.get("told", []))
    for place in range(state["stage"], len(stages)):
        seconds[str(place)], device = folder.take(stages[place], told)
        folder.took(stages[place], spent(stages, seconds, stages[place], place), device)
    folder.finish()
