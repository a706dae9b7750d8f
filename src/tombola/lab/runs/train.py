"""The training loop, once: any model, any optimiser, any batches. It never waits for the device inside an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tombola.lab.data import WHOLE, Batch, Dataset, Part, Tokens
from tombola.lab.errors import LabError
from tombola.lab.runs.compiling import Objective
from tombola.lab.runs.mode import Mode
from tombola.lab.runs.steps import Step, Steps, finishing
from tombola.lab.seeds import derive

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Gather: TypeAlias = Callable[[Tensor], Tensor]
"""Where ranks take turns with batches: one number for each batch of this rank to those of all, in order."""

_MODE = Mode()
LOOK = 100  # steps from one look at the loss to the next: a look waits for the device


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch of training came to. ``number`` counts from 1; ``lr`` is that of the first parameter group."""

    number: int
    steps: int
    train_loss: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Mean loss over the labels, and the fraction of them that is found."""

    loss: float
    accuracy: float


def cross_entropy(output: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over all labels: (N, classes) and (N,), or (N, T, classes) and (N, T) for texts; against
    labels of which ``smoothing`` is spread over all classes."""
    if output.ndim > 2:
        output, labels = output.flatten(0, -2), labels.flatten()
    return F.cross_entropy(output, labels, label_smoothing=smoothing)


@cache
def smoothed(smoothing: float) -> Loss:
    """:func:`cross_entropy` with that ``smoothing``; the same object for the same."""
    return partial(cross_entropy, smoothing=smoothing)


@dataclass(frozen=True, eq=False)
class ModelObjective:
    """(inputs, labels) to the loss of what ``model`` makes of the inputs in that mode."""

    model: nn.Module
    loss: Loss
    mode: Mode

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        return self.loss(self.mode.outputs(self.model, x), y)


def objective_of(model: nn.Module, *, loss: Loss = cross_entropy, mode: Mode = _MODE) -> ModelObjective:
    """(inputs, labels) to the loss of what ``model`` makes of the inputs in that mode."""
    return ModelObjective(model, loss, mode)


def training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[Batch]],
    *,
    epochs: int,
    done: int = 0,
    seed: int = 0,
    factor: Callable[[int], float] = lambda epoch: 1.0,
    objective: Objective | None = None,
    clip: float | None = None,
    average: Callable[[Tensor], Tensor] = lambda losses: losses,
    micro_batch: int | None = None,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    stacked: Callable[[int], None] = lambda members: None,
) -> Steps[None]:
    """Train ``model`` from epoch ``done`` to ``epochs``, waiting at each step for its loss and gradients; :func:`fit`
    does not wait.

    What epoch e does depends on ``seed``, e and the state of model and optimiser alone: PyTorch's generators are seeded
    at its beginning (dropout, say, draws from them) and are as before when training ends.

    Args:
        model: in training mode inside the loop.
        optimizer: its learning rates are those of epochs whose factor is 1.
        batches: the epoch's number, from 0, to its batches (inputs, labels). For a ``DataLoader`` that shuffles with
            the global generator, ``lambda epoch: loader``.
        epochs: how many in all.
        done: how many of them are done already; then load model and optimiser as they were.
        seed: of all random choices of the loop.
        factor: epoch's number, from 0, to what the learning rates are multiplied by.
        objective: (inputs, labels) to the scalar that is to fall; None: the cross-entropy of ``model``.
        clip: largest norm of the gradients of all parameters together; None: they are left alone.
        average: where ranks train together, a sum of losses to its average over all of them.
        micro_batch: examples computed at a time: a batch is computed in parts of at most so many, whose gradients are
            added up to those of its mean. Batch norm sees the parts. None: all at once.
        after_epoch: called with what each epoch came to, for measuring and saving.
        stacked: called in each step that was computed as one with others, with the number of models.

    Raises:
        LabError: the training loss is not finite, or an epoch has no batch.
    """
    objective = objective_of(model) if objective is None else objective
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as PyTorch's schedulers do; travels with the optimiser's state
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        for epoch in range(done, epochs):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor(epoch)
            torch.manual_seed(derive(seed, "epoch", epoch))
            model.train()
            total, steps = torch.zeros((), device=next(model.parameters()).device), 0
            for x, y in batches(epoch):
                for step in _parts(model, objective, x, y, micro_batch or len(x)):
                    value, members = yield step
                    total += value
                if members > 1:
                    stacked(members)
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if steps % LOOK == 0:
                    _mean(average(total), steps, epoch)
            if steps == 0:
                raise LabError(f"epoch {epoch + 1} had no batch; is the DataLoader used up, or the data set empty?")
            mean = _mean(average(total), steps, epoch)
            after_epoch(Epoch(number=epoch + 1, steps=steps, train_loss=mean, lr=optimizer.param_groups[0]["lr"]))


fit = finishing(training)


def _parts(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, size: int) -> Iterator[Step]:
    """The steps that come to the gradients of a batch, each of at most ``size`` examples."""
    if len(x) <= size:
        yield Step(objective, x, y)
        return
    for number, (inputs, labels) in enumerate(zip(x.split(size), y.split(size), strict=True)):
        if number == 1:
            for parameter in model.parameters():
                if parameter.grad is not None:  # a CUDA graph has left it where its next replay writes
                    parameter.grad = parameter.grad.clone()
        yield Step(_Share(objective, len(inputs) / len(x)), inputs, labels)


@dataclass(frozen=True, eq=False)
class _Share:
    """A part's share of an objective."""

    objective: Objective
    share: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, weighed."""
        return self.objective(x, y) * self.share


def _mean(total: Tensor, steps: int, epoch: int) -> float:
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise LabError(f"the training loss is {mean} in epoch {epoch + 1}; lower the learning rate")
    return mean


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Loss = cross_entropy,
    mode: Mode = _MODE,
    gather: Gather = lambda found: found,
) -> Measurement:
    """Loss and accuracy of ``model`` on ``batches``, in evaluation; then it trains on if it did. Outputs are
    (N, classes), or (N, T, classes) where each of (N, T) tokens has a label and counts as one.

    No ``torch.inference_mode``: on batches it gains nothing, and what a model computes once and keeps could not be
    trained with afterwards.

    Raises:
        LabError: there is not one example.
    """
    training = model.training
    model.eval()
    parts, right, examples = list[Tensor](), list[Tensor](), list[int]()
    for x, y in batches:
        output = mode.outputs(model, x)
        parts.append(loss(output, y) * y.numel())
        right.append((output.argmax(-1) == y).sum())
        examples.append(y.numel())
    model.train(training)
    counted = int(gather(torch.tensor(examples, dtype=torch.int64)).sum())
    if counted == 0:
        raise LabError("the test set has no example")
    losses, found = (gather(torch.stack(numbers) if numbers else torch.empty(0)) for numbers in (parts, right))
    return Measurement(loss=float(losses.sum()) / counted, accuracy=int(found.sum()) / counted)


def measure_parts(
    model: nn.Module, data: Dataset, *, mode: Mode = _MODE, part: Part = WHOLE, gather: Gather = lambda found: found
) -> tuple[Measurement, Measurement | None]:
    """Measured on the test set, and on the validation part of a text; other data have none. ``part`` is this rank's,
    where several share the batches out."""
    valid = measure(model, data.valid(part), mode=mode, gather=gather) if isinstance(data, Tokens) else None
    return measure(model, data.test(part), mode=mode, gather=gather), valid
