"""Data made up on the spot, so that every recipe can be tried in seconds where its own data are not at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from tombola.lab.data import Data, Tokens

CLASSES = 10


def images() -> Data:
    """32 images (3, 32, 32) to train and 16 to test: noise of one of ten brightnesses, its class."""
    generator = torch.Generator().manual_seed(0)

    def part(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(number) % CLASSES
        noise = torch.randn(number, 3, 32, 32, generator=generator)
        return noise + (labels.view(-1, 1, 1, 1) - CLASSES / 2) / 2, labels

    return Data(*part(32), *part(16), CLASSES, "tiny images")


def text() -> Tokens:
    """560 tokens to train and 40 each to validate and test, in examples of 16: a counter that loses its place."""
    generator = torch.Generator().manual_seed(0)
    skips = (torch.rand(640, generator=generator) < 0.1).long()
    tokens = (torch.arange(640) + 7 * skips.cumsum(0)) % 256
    train, valid, test = tokens.to(torch.uint8).split([560, 40, 40])
    return Tokens(train, valid, test, 16, 256, "tiny text")
