"""Data sets: named ones, image folders, texts, and the user's own; what they are to training is ``Dataset``."""

from tombola.lab.data.augment import PAD, augmented, cut
from tombola.lab.data.base import WHOLE, Batch, Dataset, Part
from tombola.lab.data.known import cifar10, cifar100, digits
from tombola.lab.data.loaders import Loaders
from tombola.lab.data.named import DATA, load
from tombola.lab.data.tensors import Data
from tombola.lab.data.text import Tokens

__all__ = [
    "DATA",
    "PAD",
    "WHOLE",
    "Batch",
    "Data",
    "Dataset",
    "Loaders",
    "Part",
    "Tokens",
    "augmented",
    "cifar10",
    "cifar100",
    "cut",
    "digits",
    "load",
]
