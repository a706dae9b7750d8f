"""What training needs of a data set, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from tombola.lab.errors import LabError

Batch: TypeAlias = tuple[Tensor, Tensor]


class Dataset(Protocol):
    """What training needs of a data set. ``Data``, ``Loaders``, ``Stream`` and ``Tokens`` have it."""

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


def whole_batches(name: str, examples: int, batch_size: int) -> int:
    """Batches of ``batch_size`` that so many examples make, the rest left over.

    Raises:
        LabError: not one.
    """
    if batch_size > examples:
        raise LabError(f"batch_size is {batch_size}, but {name} has {examples} examples: give {examples} or less")
    return examples // batch_size
