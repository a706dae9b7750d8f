"""Several trainings in one process, step by step together: steps of models of one build are computed as one.

A training waits at each step (``steps``), so one thread drives all of them, in the same order each time. Between its
steps a training does what it does alone: optimiser, sparse method, evaluation, checkpoints. Its random numbers and its
clock are its own. One that fails or ends leaves the others where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tombola.lab.data import Batch
from tombola.lab.runs.stack import Stack, layout, quiet
from tombola.lab.runs.steps import Answer, Step, Steps, after
from tombola.lab.runs.train import ModelObjective
from tombola.lab.runs.weighing import Weighed, weigh

_Kind: TypeAlias = tuple[Hashable, Hashable]
"""What steps have alike that can be computed as one: the build of the model with all that makes its loss, and of the
batch."""
Weigh: TypeAlias = Callable[[Sequence[ModelObjective], Sequence[Batch]], Weighed]


class Clock:
    """Seconds of one training among several that take turns: its own, and its share of what is computed for all."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """The seconds so far."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside it time counts."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.seconds, self._since = self(), None


class Member:
    """One of several trainings.

    Args:
        make: from its clock to the training.
        ended: called once, with what went wrong or None.
        device: whose random numbers it draws.

    Attributes:
        step: what it waits for; None when it has ended.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], float]], Steps[Any]],
        *,
        ended: Callable[[Exception | None], None],
        device: torch.device,
    ) -> None:
        self.clock = Clock()
        self.step: Step | None = None
        self._steps, self._ended, self.device = make(self.clock), ended, device
        self._random = _random_state(device)

    def go(self, answer: Answer | None = None) -> None:
        """On to the step after the one that is answered, or that is computed as it is; at first to the first."""
        step, self.step = self.step, None
        with self.clock.running():
            _set_random_state(self._random, self.device)
            try:
                if step is None:
                    self.step = next(self._steps)
                else:
                    self.step = after(step, self._steps) if answer is None else self._steps.send(answer)
            except StopIteration:
                self._ended(None)
            except Exception as error:
                self._ended(error)
            self._random = _random_state(self.device)

    def leave(self) -> None:
        """End it where it stands."""
        self.step = None
        self._steps.close()


class Together:
    """Trains members together where that pays, and one after the other where it does not.

    Args:
        say: told what was measured, in a line, whenever that is done.
        weigh: measures whether it pays for some models and batches.
    """

    def __init__(self, *, say: Callable[[str], None], weigh: Weigh = weigh) -> None:
        self._say, self._weigh = say, weigh
        self._layouts: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._numbers: dict[Hashable, int] = {}  # of layouts, which take long to hash
        self._stacks: dict[Hashable, Stack] = {}  # build -> the models of it that were computed as one last
        self._paying: set[tuple[_Kind, int]] = set()  # with numbers of members
        self._refused: set[_Kind] = set()

    def train(self, members: Sequence[Member]) -> None:
        """Train all to their ends. Random generators are as before when that is over.

        Raises:
            BaseException: what no training can be blamed for, Ctrl-C say; they are left where they stand.
        """
        cuda = {_index(member.device) for member in members if member.device.type == "cuda"}
        with torch.random.fork_rng(devices=sorted(cuda)), quiet():
            try:
                for member in members:
                    member.go()
                while waiting := [member for member in members if member.step is not None]:
                    # first those that gain nothing by others: they may come to where these wait
                    if hopeless := [member for member in waiting if not self._may_gain(member)]:
                        for member in hopeless:
                            self._go_alone(member)
                    elif not self._go_together(waiting) and all(map(self._may_gain, waiting)):
                        self._go_alone(waiting[0])
            finally:
                for member in members:
                    member.leave()

    def _go_together(self, waiting: Sequence[Member]) -> bool:
        """A step of all that gain by it; False if none does."""
        teams: dict[_Kind, list[Member]] = {}
        for member in waiting:
            if (kind := self._kind(member.step)) is not None:
                teams.setdefault(kind, []).append(member)
        teams = {kind: team for kind, team in teams.items() if len(team) > 1}
        builds = {build for build, _ in teams}
        self._stacks = {build: stack for build, stack in self._stacks.items() if build in builds}
        gone = [self._compute(kind, team) for kind, team in teams.items() if self._pays(kind, team)]
        return any(gone)

    def _may_gain(self, member: Member) -> bool:
        kind = self._kind(member.step)
        return kind is not None and kind not in self._refused

    def _go_alone(self, member: Member) -> None:
        """All of its steps that are of the kind which it waits for now."""
        assert member.step is not None
        kind = self._kind(member.step)
        while member.step is not None and self._kind(member.step) == kind:
            member.go()

    def _pays(self, kind: _Kind, team: Sequence[Member]) -> bool:
        if kind not in self._refused and (kind, len(team)) not in self._paying:
            weighed = self._weigh(*_parts(team))
            self._say(f"together: {weighed}")
            if weighed.pays:
                self._paying.add((kind, len(team)))
            else:
                self._refused.add(kind)  # of fewer models, too
        return kind not in self._refused

    def _compute(self, kind: _Kind, team: Sequence[Member]) -> bool:
        """A step of the team, as one; False if that could not be done."""
        objectives, batches = _parts(team)
        begun = time.monotonic()
        try:
            losses = self._stack(kind[0], objectives).step(batches)
        except Exception as error:  # no room for several, say; what is wrong with one of them will show
            self._refused.add(kind)
            self._say(f"together: one after the other from here on: {type(error).__name__}: {error}")
            for objective in objectives:
                objective.model.zero_grad()
            return False
        share = (time.monotonic() - begun) / len(team)
        for member, loss in zip(team, losses, strict=True):
            member.clock.seconds += share
            member.go(Answer(loss, len(team)))
        return True

    def _stack(self, build: Hashable, objectives: Sequence[ModelObjective]) -> Stack:
        found = self._stacks.get(build)
        if found is None or not found.holds([objective.model for objective in objectives]):
            found = self._stacks[build] = Stack(objectives)
        return found

    def _kind(self, step: Step | None) -> _Kind | None:
        """None: it is to be computed as it is."""
        if step is None or not isinstance(step.objective, ModelObjective):
            return None
        model = step.objective.model
        if model not in self._layouts:
            self._layouts[model] = self._numbers.setdefault(layout(model), len(self._numbers))
        build = self._layouts[model], step.objective.loss, step.objective.mode
        return build, tuple((t.shape, t.dtype, t.device) for t in (step.x, step.y))


def _parts(team: Sequence[Member]) -> tuple[list[ModelObjective], list[Batch]]:
    """Objectives and batches."""
    steps = [member.step for member in team]
    objectives = [step.objective for step in steps if step is not None and isinstance(step.objective, ModelObjective)]
    return objectives, [(step.x, step.y) for step in steps if step is not None]


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _random_state(device: torch.device) -> list[Tensor]:
    """Of PyTorch's global generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
