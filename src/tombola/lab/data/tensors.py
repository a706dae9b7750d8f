"""Small data sets: tensors on the device, augmented there, batch by batch.

An epoch is drawn from one seed: which example comes when, and how it is flipped and cropped. Nothing but the seed need
be known to draw an epoch again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tombola.lab.data.augment import PAD, augmented, cut, positions
from tombola.lab.data.base import WHOLE, Batch, Part, whole_batches
from tombola.lab.errors import LabError

EVALUATED = {True: 100, False: 1000}
"""Examples that are evaluated at a time, on the CPU and elsewhere: what its caches can hold, and what fills a GPU."""


@dataclass(frozen=True)
class Data:
    """A data set held as tensors.

    train_x, test_x: (N, …) floats, or uint8 pixels that are turned into (pixel / 255 − mean) / std batch by batch.
    train_y, test_y: (N,) int64 labels in 0 … classes − 1. mean, std: shapes that broadcast against a batch.

    cutout: side of the square that is blanked out in each training image when it is augmented; 0: none.
    original: whether the files are the publisher's own; None: not known.

    An epoch has floor(N / batch_size) batches; the examples that are left over are other ones in each epoch.

    Raises:
        LabError: lengths, types or labels do not fit, or an input is not finite.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    name: str
    mean: Tensor | None = field(default=None, kw_only=True)
    std: Tensor | None = field(default=None, kw_only=True)
    cutout: int = field(default=0, kw_only=True)
    original: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            problem = _problem(x, y, self.classes)
            if problem:
                raise LabError(f"data {self.name!r}, {part} set: {problem}")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            shapes = f"{tuple(self.train_x.shape[1:])} to train, {tuple(self.test_x.shape[1:])} to test"
            raise LabError(f"data {self.name!r}: examples have shape {shapes}; give both the same")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train_x.shape[1:])

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch: the whole ones.

        Raises:
            LabError: there is not one whole batch.
        """
        return whole_batches(self.name, len(self.train_x), batch_size)

    def epoch(self, seed: int, *, batch_size: int, augment: bool, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of one epoch in the order that ``seed`` gives, flipped, cropped and cut at random if
        ``augment``.

        All random numbers, those of the other parts too, are drawn on the CPU before the first batch: any device sees
        the same epoch, and no step waits for the device.
        """
        generator = torch.Generator().manual_seed(seed)
        device, examples, steps = self.train_x.device, len(self.train_x), self.steps(batch_size)
        order = torch.randperm(examples, generator=generator)[: steps * batch_size].to(device).view(steps, batch_size)
        mine = part.of(batch_size)
        if not augment:
            for chosen in order[:, mine]:
                yield self._normalised(self.train_x[chosen]), self.train_y[chosen]
            return
        if self.train_x.ndim != 4:
            shape = self.input_shape
            raise LabError(f"augment: {self.name} has inputs of shape {shape}, not images (channels, height, width)")
        flips = torch.rand(order.shape, generator=generator).to(device) < 0.5
        shifts = torch.randint(0, 2 * PAD + 1, (steps, batch_size, 2), generator=generator).to(device)
        height, width = self.train_x.shape[2:]
        centres = positions((steps, batch_size), height, width, generator).to(device) if self.cutout else shifts
        drawn = (each[:, mine] for each in (order, flips, shifts, centres))
        for chosen, flip, shift, centre in zip(*drawn, strict=True):
            x = self._normalised(augmented(self.train_x[chosen], flip, shift))
            yield cut(x, centre, self.cutout) if self.cutout else x, self.train_y[chosen]

    def test(self, part: Part = WHOLE) -> Iterator[Batch]:
        """The test set in order, in batches of at most :data:`EVALUATED`."""
        size = EVALUATED[self.test_x.is_cpu]
        for x, y in part.turns(zip(self.test_x.split(size), self.test_y.split(size), strict=True)):
            yield self._normalised(x), y

    def first(self, examples: int) -> Data:
        """The same data set with the first so many training examples alone.

        Raises:
            LabError: it has fewer.
        """
        if examples > len(self.train_x):
            raise LabError(f"examples is {examples}, but {self.name} has {len(self.train_x)} to train")
        return replace(self, train_x=self.train_x[:examples], train_y=self.train_y[:examples])

    def to(self, device: torch.device) -> Data:
        """The same data set with its tensors on ``device``."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
            mean=None if self.mean is None else self.mean.to(device),
            std=None if self.std is None else self.std.to(device),
        )

    def _normalised(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if self.mean is not None:
            x = x - self.mean
        return x if self.std is None else x / self.std


def _problem(x: Tensor, y: Tensor, classes: int) -> str | None:
    if y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        return f"{tuple(x.shape)} inputs and {tuple(y.shape)} labels: give one label for each input, and at least one"
    if y.dtype != torch.int64:
        return f"labels are {y.dtype}: make them torch.int64"
    if int(y.min()) < 0 or int(y.max()) >= classes:
        return f"labels go from {int(y.min())} to {int(y.max())}, but must lie in 0 … {classes - 1}"
    if x.dtype != torch.uint8 and not x.is_floating_point():
        return f"inputs are {x.dtype}: make them floats, or uint8 pixels"
    if x.is_floating_point() and not bool(x.isfinite().all()):
        return "some inputs are NaN or infinite"
    return None
