"""Augmentation of whole batches of images, on the device that they are on."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4  # of the random crop, in pixels


def augmented(x: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Flip some images of a batch from left to right and crop each out of its zero-padded self.

    x: (N, C, H, W). flip: (N,) bool. shift: (N, 2) integers in 0 … 2·PAD, the crop's first row and column.
    """
    n, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (PAD, PAD, PAD, PAD))
    rows = shift[:, :1] + torch.arange(height, device=x.device)
    columns = shift[:, 1:] + torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # in a channel of the padded image
    places = places.view(n, 1, -1).expand(n, channels, -1)  # a fifth of the time that an index for each axis takes
    return padded.flatten(2).gather(2, places).view(x.shape)


def positions(count: tuple[int, ...], height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random pixels of images: (*count, 2) rows and columns, drawn on the CPU."""
    size = torch.tensor([height, width])
    return (torch.rand((*count, 2), generator=generator) * size).long().minimum(size - 1)


def cut(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Blank a square out of each image of a normalised batch, as far as it lies inside (cutout).

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv 1708.04552.

    x: (N, C, H, W). centre: (N, 2) integers, row and column. side: of the square, in pixels.
    """
    inside = []
    for axis, length in enumerate(x.shape[2:]):
        place = torch.arange(length, device=x.device) - (centre[:, axis, None] - side // 2)
        inside.append((place >= 0) & (place < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
