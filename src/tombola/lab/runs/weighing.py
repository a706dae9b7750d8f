"""Whether computing several models as one pays on this device: tried on copies of them, checked, and timed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tombola.lab.data import Batch
from tombola.lab.runs.compiling import TOLERANCE
from tombola.lab.runs.stack import Stack, quiet
from tombola.lab.runs.train import ModelObjective, objective_of, smoothed
from tombola.lab.runs.workshop import Workshop
from tombola.lab.seeds import derive

TURNS = 5
AT_LEAST = 0.02  # seconds of steps in a turn
ENOUGH = 10.0  # seconds after which no further turn begins
WORTH = 1.05  # times as fast; what is less may be noise


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A step of several models: forward, backward, and an optimiser's update of each.

    alone, together: milliseconds of the step one after the other, and with the models computed as one.
    gain: how many times as long the first takes: the median over the turns in which they were timed.
    problem: why they cannot be computed as one, and nothing was timed; "": they can.
    """

    members: int
    alone: float = 0.0
    together: float = 0.0
    gain: float = 0.0
    problem: str = ""

    @property
    def pays(self) -> bool:
        """Whether they are computed as one."""
        return not self.problem and self.gain > WORTH

    def __str__(self) -> str:
        if self.problem:
            return f"{self.members} runs are trained one after the other: {self.problem}"
        share = f"{1 / self.gain:.2f} of the time of one after the other"
        times = f"{self.together:.2f} ms a step of all, not {self.alone:.2f}"
        if self.pays:
            return f"{self.members} runs at once take {share} ({times})"
        return f"no gain, {self.members} runs at once take {share} ({times}): trained one after the other"


def weigh(objectives: Sequence[ModelObjective], batches: Sequence[Batch], *, turns: int = TURNS) -> Weighed:
    """Try, on copies of the models, whether they can be computed as one, and how fast that is.

    Args:
        objectives: of models in training mode that have one ``layout``.
        batches: one for each, of one shape.
        turns: how often both ways are timed, one after the other.
    """
    cuda = sorted({p.device.index for p in objectives[0].model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda), quiet():
        try:
            times = _timed(alternatives(objectives, batches), turns)
        except Exception as error:  # whatever vmap fails with, or the model in it, or for want of room
            reason = str(error) if isinstance(error, Different) else f"{type(error).__name__}: {error}"
            return Weighed(members=len(objectives), problem=" ".join(reason.split())[:300])
    alone, together = times["one by one"], times["stacked"]
    return Weighed(
        members=len(objectives),
        alone=1000 * statistics.median(alone),
        together=1000 * statistics.median(together),
        gain=statistics.median(one / other for one, other in zip(alone, together, strict=True)),
    )


def weigh_networks(make: Workshop, members: int, *, turns: int = TURNS) -> Weighed:
    """The same for so many networks of ``make``, each with weights and a batch of its own, as its config has them."""
    return weigh(*networks(make, members), turns=turns)


def networks(make: Workshop, members: int) -> tuple[list[ModelObjective], list[Batch]]:
    """What these networks make smaller, and on what."""
    config = make.config
    seeds = [derive(config.seed, "member", place) for place in range(members)]
    epochs = [make.data.epoch(seed, batch_size=config.batch_size, augment=config.augment) for seed in seeds]
    loss = smoothed(config.label_smoothing)
    objectives = [objective_of(make.model(seed=seed).train(), loss=loss, mode=make.mode) for seed in seeds]
    return objectives, [next(epoch) for epoch in epochs]


class Different(Exception):
    """Models computed as one do not give what they give alone."""


def alternatives(objectives: Sequence[ModelObjective], batches: Sequence[Batch]) -> dict[str, Callable[[], None]]:
    """A training step of copies of all models, by name: "stacked" and "one by one". Both end when the device has.

    Raises:
        Different: their losses, gradients or buffers are not equal.
        Exception: whatever a model that cannot be stacked makes vmap raise.
    """
    batches = [(x, y.roll(place, 0)) for place, (x, y) in enumerate(batches)]  # no two models do the same
    stacked, alone = _different_copies(objectives), _different_copies(objectives)
    stack = Stack(stacked)
    losses = stack.step(batches)
    for one, other, loss, batch in zip(stacked, alone, losses, batches, strict=True):
        expected = other(*batch)
        expected.backward()
        _compare(one, other, loss, expected.detach())

    def computed_as_one() -> Sequence[Tensor]:
        return stack.step(batches)

    def one_by_one() -> Sequence[Tensor]:
        return [_backward(objective(*batch)) for objective, batch in zip(alone, batches, strict=True)]

    ways = {"stacked": (computed_as_one, stacked), "one by one": (one_by_one, alone)}
    return {name: partial(_step, losses_of, _optimizers(whose)) for name, (losses_of, whose) in ways.items()}


def _different_copies(objectives: Sequence[ModelObjective]) -> list[ModelObjective]:
    """Copies, each with weights of its own: what uses those of another shows then."""
    copies = [replace(objective, model=copy.deepcopy(objective.model)) for objective in objectives]
    with torch.no_grad():
        for place, each in enumerate(copies):
            for parameter in each.model.parameters():
                parameter.grad = None
                parameter.mul_(0.95**place)
    return copies


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def _optimizers(objectives: Sequence[ModelObjective]) -> list[torch.optim.Optimizer]:
    learnt = [[p for p in objective.model.parameters() if p.requires_grad] for objective in objectives]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(each, lr=1e-3, momentum=0.9) for each in learnt]
    for optimizer in optimizers:
        optimizer.zero_grad()  # of what was compared
    return optimizers


def _step(losses_of: Callable[[], Sequence[Tensor]], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    losses = losses_of()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    float(torch.stack(list(losses)).sum())  # waits for the device


def _compare(one: ModelObjective, other: ModelObjective, loss: Tensor, expected: Tensor) -> None:
    """Raise Different unless loss, all gradients together, and each buffer are the same but for rounding."""
    parts = {
        "its loss": ([loss], [expected]),
        "its gradients": (_gradients(one), _gradients(other)),
        **{
            f"its buffer {name}": ([one.model.get_buffer(name)], [buffer])
            for name, buffer in other.model.named_buffers()
        },
    }
    for what, (found, wanted) in parts.items():
        a, b = (torch.cat([tensor.detach().flatten().float() for tensor in tensors]) for tensors in (found, wanted))
        if not float((a - b).norm()) <= TOLERANCE * float(b.norm()):
            raise Different(f"{what} would not be what a model alone gives")


def _gradients(objective: ModelObjective) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in objective.model.parameters()]


def _timed(ways: Mapping[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of a call of each, turn after turn."""
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + ENOUGH
    for turn in range(turns):
        if turn and time.perf_counter() > end:
            break
        for name, way in ways.items():
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < AT_LEAST:
                way()
                calls += 1
            taken[name].append((time.perf_counter() - start) / calls)
    return taken
