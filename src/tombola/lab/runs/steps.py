"""A training that waits at each step for its loss and gradients, so that whoever drives it may compute several at once.

It is a generator: it yields each :class:`Step`, and is sent an :class:`Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeAlias, TypeVar

from torch import Tensor

from tombola.lab.runs.compiling import Objective

P = ParamSpec("P")
T = TypeVar("T")


class Answer(NamedTuple):
    """The loss of a step, whose gradients are in place by now, and how many models were computed as one for it."""

    loss: Tensor
    members: int = 1


@dataclass(frozen=True, eq=False)
class Step:
    """What is waited for: ``objective(x, y)``, and its gradients added to those of the parameters."""

    objective: Objective
    x: Tensor
    y: Tensor

    def alone(self) -> Answer:
        """Compute it as it is."""
        loss = self.objective(self.x, self.y)
        loss.backward()
        return Answer(loss.detach())


Steps: TypeAlias = Generator[Step, Answer, T]


def finish(steps: Steps[T]) -> T:
    """Train to the end, each step computed as it is."""
    try:
        step = next(steps)
        while True:
            step = after(step, steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()


def finishing(make: Callable[P, Steps[T]]) -> Callable[P, T]:
    """The same as a function that trains to the end."""

    @wraps(make)
    def whole(*arguments: P.args, **options: P.kwargs) -> T:
        return finish(make(*arguments, **options))

    return whole


def after(step: Step, steps: Steps[T]) -> Step:
    """The step that follows ``step``, which is computed as it is. What goes wrong there goes wrong in the training.

    Raises:
        StopIteration: none follows.
    """
    try:
        answer = step.alone()
    except BaseException as error:
        return steps.throw(error)
    return steps.send(answer)
