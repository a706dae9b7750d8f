"""Nets without shortcuts: LeNet-300-100, Conv-2, Conv-4, Conv-6, and a small convolutional net for digits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.models.initial import glorot, scaled


def lenet_300_100(*, in_channels: int = 1, image_size: int = 28, classes: int = 10, width: float = 1.0) -> nn.Module:
    """LeNet-300-100, fully connected: 266,200 weights for 28×28 images, 50,200 for 8×8 ones.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _lenet(300, 100, in_channels, image_size, classes, width)


def lenet_100_69(*, in_channels: int = 1, image_size: int = 28, classes: int = 10, width: float = 1.0) -> nn.Module:
    """LeNet-300-100 without the neurons that RigL left without connections (Evci et al., appendix B): 85,990 weights.

    The paper's also lacks 376 of the 784 pixels, which RigL may leave out here.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _lenet(100, 69, in_channels, image_size, classes, width)


def conv_digits(*, in_channels: int = 1, image_size: int = 8, classes: int = 10, width: float = 1.0) -> nn.Module:
    """A convolutional net for small digits: 16 and 32 filters of stride 2, fc 64. 13,584 weights for 8×8 images.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    side = -(-image_size // 4)
    first, second, hidden = (scaled(size, width) for size in (16, 32, 64))
    return _Chain(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, first, 3, stride=2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * side**2, hidden),
            relu3=nn.ReLU(),
            out=nn.Linear(hidden, classes),
        )
    )


def conv2(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """Conv-2: 64, 64, pool, fc 256, 256. 4,300,992 weights for 32×32×3 images and 10 classes; no batch norm.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _convolutional((64, 64, "pool"), (256, 256), in_channels, image_size, classes, width)


def conv4(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """Conv-4: 64, 64, pool, 128, 128, pool, fc 256, 256. 2,425,024 weights for 32×32×3 images and 10 classes.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _convolutional((64, 64, "pool", 128, 128, "pool"), (256, 256), in_channels, image_size, classes, width)


def conv6(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """Conv-6: 64, 64, pool, 128, 128, pool, 256, 256, pool, fc 256, 256. 2,261,184 weights for 32×32×3, 10 classes.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    filters = (64, 64, "pool", 128, 128, "pool", 256, 256, "pool")
    return _convolutional(filters, (256, 256), in_channels, image_size, classes, width)


def _lenet(first: int, second: int, in_channels: int, image_size: int, classes: int, width: float) -> nn.Module:
    first, second = scaled(first, width), scaled(second, width)
    return _Chain(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(in_channels * image_size**2, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            fc3=nn.Linear(second, classes),
        )
    )


class _Chain(nn.Sequential):
    """Layers one after the other, initialised as the papers do."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        glorot(self)


def _convolutional(
    filters: Sequence[int | str], hidden: Sequence[int], channels: int, size: int, classes: int, width: float
) -> nn.Module:
    """3×3 convolutions and 2×2 max-pools, then fully connected layers, ReLU after each but the last."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    convolutions = pools = 0
    for number in filters:
        if isinstance(number, str):
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
            size //= 2
            continue
        convolutions += 1
        layers[f"conv{convolutions}"] = nn.Conv2d(channels, scaled(number, width), 3, padding=1)
        layers[f"relu{convolutions}"] = nn.ReLU()
        channels = scaled(number, width)
    if size == 0:
        raise LabError(f"the images are too small to be halved {pools} times; choose another model")
    layers["flatten"] = nn.Flatten()
    features = channels * size**2
    for place, number in enumerate(hidden, start=1):
        layers[f"fc{place}"] = nn.Linear(features, scaled(number, width))
        layers[f"fc{place}_relu"] = nn.ReLU()
        features = scaled(number, width)
    layers["out"] = nn.Linear(features, classes)
    return _Chain(layers)
