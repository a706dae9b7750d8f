"""Data sets: the digits of scikit-learn, CIFAR-10 from its standard folder, and the user's own.

Small data sets live as tensors on the device, and an epoch is drawn from one seed: which example comes when, and how it
is flipped and cropped. Nothing but the seed need be known to draw an epoch again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from tombola.lab import cifar
from tombola.lab.errors import LabError
from tombola.lab.objects import call, resolve

Batch: TypeAlias = tuple[Tensor, Tensor]

DATA = ("digits", "cifar10")
PAD = 4  # of the random crop, in pixels


class Dataset(Protocol):
    """What training needs of a data set. :class:`Data` and :class:`Loaders` have it."""

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 … classes − 1."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""

    def epoch(self, seed: int, *, batch_size: int, augment: bool) -> Iterator[Batch]:
        """The batches of one epoch, the same ones for the same seed."""

    def test(self) -> Iterable[Batch]:
        """The test set in batches, always in the same order."""

    def to(self, device: torch.device) -> Dataset:
        """The data set for training on ``device``."""


@dataclass(frozen=True)
class Data:
    """A data set held as tensors.

    train_x, test_x: (N, …) floats, or uint8 pixels that are turned into (pixel / 255 − mean) / std batch by batch.
    train_y, test_y: (N,) int64 labels in 0 … classes − 1. mean, std: shapes that broadcast against a batch.

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
        steps = len(self.train_x) // batch_size
        if steps == 0:
            most = len(self.train_x)
            raise LabError(f"batch_size is {batch_size}, but {self.name} has {most} examples: give {most} or less")
        return steps

    def epoch(self, seed: int, *, batch_size: int, augment: bool) -> Iterator[Batch]:
        """The batches of one epoch in the order that ``seed`` gives, flipped and cropped at random if ``augment``.

        All random numbers are drawn on the CPU before the first batch: any device sees the same epoch, and no step
        waits for the device.
        """
        generator = torch.Generator().manual_seed(seed)
        device, examples, steps = self.train_x.device, len(self.train_x), self.steps(batch_size)
        order = torch.randperm(examples, generator=generator)[: steps * batch_size].to(device).view(steps, batch_size)
        if not augment:
            for chosen in order:
                yield self._normalised(self.train_x[chosen]), self.train_y[chosen]
            return
        if self.train_x.ndim != 4:
            shape = self.input_shape
            raise LabError(f"augment: {self.name} has inputs of shape {shape}, not images (channels, height, width)")
        flips = torch.rand(order.shape, generator=generator).to(device) < 0.5
        shifts = torch.randint(0, 2 * PAD + 1, (steps, batch_size, 2), generator=generator).to(device)
        for chosen, flip, shift in zip(order, flips, shifts, strict=True):
            yield self._normalised(augmented(self.train_x[chosen], flip, shift)), self.train_y[chosen]

    def test(self) -> Iterator[Batch]:
        """The test set, in batches of at most 1,000."""
        for start in range(0, len(self.test_x), 1000):
            yield self._normalised(self.test_x[start : start + 1000]), self.test_y[start : start + 1000]

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


@dataclass(frozen=True)
class Loaders:
    """A data set behind two ``torch.utils.data.DataLoader``: for data that does not fit into memory.

    The loaders set the batch size and the augmentation; the config's ``batch_size`` must agree. An epoch is seeded
    through PyTorch's global generator, which shuffling loaders draw from (and a loader's own, if it has one).

    input_shape: shape of one example, as it comes out of the loader.
    """

    train: Any
    validation: Any
    classes: int
    input_shape: tuple[int, ...]
    name: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch, as the training loader counts them.

        Raises:
            LabError: the loader makes batches of another size.
        """
        size = self.train.batch_size
        if size is not None and size != batch_size:
            raise LabError(f"batch_size is {batch_size}, but the loader of {self.name} makes batches of {size}")
        return len(self.train)

    def epoch(self, seed: int, *, batch_size: int, augment: bool) -> Iterator[Batch]:
        """The batches of one epoch of the training loader, seeded with ``seed``."""
        if augment:
            raise LabError(f"augment: {self.name} is read through a DataLoader; augment in its data set instead")
        torch.manual_seed(seed)
        if isinstance(self.train.generator, torch.Generator):
            self.train.generator.manual_seed(seed)
        for x, y in self.train:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def test(self) -> Iterator[Batch]:
        """The batches of the validation loader."""
        for x, y in self.validation:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def to(self, device: torch.device) -> Loaders:
        """The same loaders, with batches moved to ``device``."""
        return replace(self, device=device)


def load(name: str, *, data_dir: Path | None = None, device: torch.device | str = "cpu") -> Dataset:
    """The data set ``name``: "digits", "cifar10" (from ``data_dir``), or the user's own "module:function".

    A user's function gets ``data_dir`` if it names it, and returns a :class:`Data`, a :class:`Loaders`, or the tensors
    (train_x, train_y, test_x, test_y), in which case the classes are counted.

    Raises:
        LabError: no such data set, or its files are missing or damaged.
    """
    if name == "digits":
        data: Dataset = digits()
    elif name == "cifar10":
        if data_dir is None:
            raise LabError("data 'cifar10': say where its cifar-10-batches-py folder is with --data-dir")
        data = cifar10(data_dir)
    elif ":" in name:
        data = _users(name, data_dir)
    else:
        raise LabError(f"data {name!r}: there is {', '.join(DATA)}; or give your own as module:function")
    return data.to(torch.device(device))


def digits() -> Data:
    """The 1,797 handwritten 8×8 digits of scikit-learn: 1,347 to train, 450 to test, (N, 1, 8, 8) floats.

    The split is stratified and always the same; pixels are shifted and scaled to mean 0 and deviation 1 over the
    training set.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x = torch.from_numpy(bunch.data).float().view(-1, 1, 8, 8)
    y = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(y)), test_size=450, stratify=y.numpy(), random_state=0)
    x = (x - x[train].mean()) / x[train].std()
    return Data(x[train], y[train], x[test], y[test], 10, "digits")


def cifar10(folder: Path) -> Data:
    """CIFAR-10 from its ``cifar-10-batches-py`` folder, or the folder around it: 50,000 to train, 10,000 to test.

    Images stay uint8 (N, 3, 32, 32) in memory. All 50,000 training images are used, as the 780 = 2·390 updates of two
    epochs in Savarese et al. imply; mean and deviation are those of their code.
    """
    (train_x, train_y), (test_x, test_y) = cifar.read(folder)
    mean = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1) / 255
    std = torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1) / 255
    return Data(train_x, train_y, test_x, test_y, 10, "cifar10", mean=mean, std=std)


def augmented(x: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Flip some images of a batch from left to right and crop each out of its zero-padded self.

    x: (N, C, H, W). flip: (N,) bool. shift: (N, 2) integers in 0 … 2·PAD, the crop's first row and column.
    """
    n, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (PAD, PAD, PAD, PAD))
    rows = shift[:, :1] + torch.arange(height, device=x.device)
    columns = shift[:, 1:] + torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _users(name: str, data_dir: Path | None) -> Dataset:
    made = call(resolve(name, "data"), name, "data", {"data_dir": data_dir})
    if isinstance(made, (Data, Loaders)):
        return made
    if isinstance(made, tuple) and len(made) == 4 and all(isinstance(part, Tensor) for part in made):
        labels = [y for y in made[1::2] if y.numel() and not y.is_floating_point()]
        return Data(*made, classes=max((int(y.max()) + 1 for y in labels), default=1), name=name)
    found = f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
    raise LabError(
        f"data {name!r}: the function returned {found}, not tombola.lab.data.Data, Loaders, "
        "or the four tensors (train_x, train_y, test_x, test_y)"
    )


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
