"""Data sets of some classes alone, to transfer tickets between where there is but one data set: ``module:function``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tombola.lab import data
from tombola.lab.data import Data

ANIMALS, VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)


def cifar10_animals(data_dir: Path) -> Data:
    """Birds, cats, deer, dogs, frogs and horses of CIFAR-10: 30,000 to train, 6,000 to test."""
    return of_classes(data.cifar10(data_dir), ANIMALS)


def cifar10_vehicles(data_dir: Path) -> Data:
    """Aeroplanes, cars, ships and lorries of CIFAR-10: 20,000 to train, 4,000 to test."""
    return of_classes(data.cifar10(data_dir), VEHICLES)


def digits_to_5() -> Data:
    """The digits 0 to 5."""
    return of_classes(data.digits(), range(6))


def digits_from_6() -> Data:
    """The digits 6 to 9."""
    return of_classes(data.digits(), range(6, 10))


def of_classes(whole: Data, classes: Sequence[int]) -> Data:
    """The examples of some classes, which are numbered anew in this order; pixels are normalised as in the whole."""
    number = torch.full((whole.classes,), -1)
    number[list(classes)] = torch.arange(len(classes))

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        new = number[y]
        return x[new >= 0], new[new >= 0]

    (train_x, train_y), (test_x, test_y) = part(whole.train_x, whole.train_y), part(whole.test_x, whole.test_y)
    return replace(whole, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y, classes=len(classes))
