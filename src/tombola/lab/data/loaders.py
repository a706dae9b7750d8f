"""Data that somebody else reads: PyTorch's loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tombola.lab.data.base import WHOLE, Batch, Part
from tombola.lab.errors import LabError


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

    def epoch(self, seed: int, *, batch_size: int, augment: bool, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of one epoch of the training loader, seeded with ``seed``. For any part all of it is read."""
        if augment:
            raise LabError(f"augment: {self.name} is read through a DataLoader; augment in its data set instead")
        torch.manual_seed(seed)
        if isinstance(self.train.generator, torch.Generator):
            self.train.generator.manual_seed(seed)
        for x, y in self.train:
            mine = part.of(len(x))
            yield x[mine].to(self.device, non_blocking=True), y[mine].to(self.device, non_blocking=True)

    def test(self, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of the validation loader."""
        for x, y in part.turns(self.validation):
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def to(self, device: torch.device) -> Loaders:
        """The same loaders, with batches moved to ``device``."""
        return replace(self, device=device)
