"""Data sets with a name: the digits of scikit-learn, CIFAR-10 and CIFAR-100 from their standard folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tombola.lab import cifar
from tombola.lab.data.tensors import Data


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
    return _cifar(folder, cifar.CIFAR10, "cifar10", mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def cifar100(folder: Path) -> Data:
    """CIFAR-100 from its ``cifar-100-python`` folder, or the folder around it, with its 100 fine classes.

    50,000 images to train, 10,000 to test, else as :func:`cifar10`; mean and deviation are those of its training set.
    """
    return _cifar(folder, cifar.CIFAR100, "cifar100", mean=(129.3, 124.1, 112.4), std=(68.2, 65.4, 70.4))


def _cifar(folder: Path, form: cifar.Form, name: str, *, mean: Sequence[float], std: Sequence[float]) -> Data:
    (train_x, train_y), (test_x, test_y), original = cifar.read(folder, form)
    scale = [torch.tensor(channels).view(3, 1, 1) / 255 for channels in (mean, std)]
    return Data(
        train_x, train_y, test_x, test_y, form.classes, name, mean=scale[0], std=scale[1], original=original
    )  # fmt: skip
