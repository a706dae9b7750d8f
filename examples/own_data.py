"""Data and a network of your own on the command line, here behind two PyTorch DataLoaders. In this folder:

tombola search --method imp --rounds 2 --data own_data:load --model own_data:net --batch-size 32 --epochs 2 --lr 0.1
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tombola.lab.data import Loaders


def load() -> Loaders:
    """Which of three noisy waves an example is. A parameter ``data_dir`` would get the path of --data-dir."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(3, (640,), generator=draw)
    x = torch.sin(torch.linspace(0, 6, 50) * (1 + y[:, None])) + torch.randn(640, 50, generator=draw)
    train, test = TensorDataset(x[:512], y[:512]), TensorDataset(x[512:], y[512:])
    return Loaders(
        train=DataLoader(train, batch_size=32, shuffle=True, drop_last=True),  # the size of --batch-size
        validation=DataLoader(test, batch_size=128),
        classes=3,
        input_shape=(50,),
        name="waves",
    )


def net(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Called with those of input_shape, classes, in_channels, image_size and width that it names."""
    return nn.Sequential(nn.Linear(input_shape[0], 64), nn.ReLU(), nn.Linear(64, classes))
