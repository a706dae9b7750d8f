"""What training needs of a data set, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from tombola.lab.errors import LabError

Batch: TypeAlias = tuple[Tensor, Tensor]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of each epoch is this process's, where several train one network: the ``index``-th of ``count``.

    Of each training batch that is a run of its examples, as many as of the other parts or one more or less; of a test
    set every ``count``-th batch. ``united`` makes of what was found in this part what was found in all of them.
    """

    index: int = 0
    count: int = 1
    united: Callable[[set[str]], set[str]] = set

    def of(self, examples: int) -> slice:
        """Which of so many."""
        return slice(examples * self.index // self.count, examples * (self.index + 1) // self.count)

    def size(self, examples: int) -> int:
        """How many of so many."""
        mine = self.of(examples)
        return int(mine.stop - mine.start)

    def turns(self, batches: Iterable[T]) -> Iterator[T]:
        """Which of these batches."""
        return islice(batches, self.index, None, self.count)


WHOLE = Part()


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

    def epoch(self, seed: int, *, batch_size: int, augment: bool, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of one epoch, the same ones for the same seed; or a part of each, of those very batches."""

    def test(self, part: Part = WHOLE) -> Iterable[Batch]:
        """The test set in batches, always in the same order; or a part of these."""

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
