"""VGG-16 for CIFAR, with batch norm. Simonyan & Zisserman, arXiv 1409.1556; this form as in Liu et al.,
"Rethinking the Value of Network Pruning", arXiv 1810.05270."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.models.initial import he, scaled

_FILTERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def vgg16(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-16 with batch norm and one linear layer: 14,715,584 weights, 313,201,664 multiply-adds at 32×32.

    Args:
        in_channels: of the images.
        image_size: height and width, at least 32.
        classes: number of classes.
        width: multiplier of all numbers of channels.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.

    Raises:
        LabError: the images are too small for five pools.
    """
    if image_size < 32:
        raise LabError(f"vgg16 halves images five times, so {image_size}×{image_size} is too small; give 32×32 or more")
    return _VGG(in_channels, image_size, classes, width)


class _VGG(nn.Sequential):
    def __init__(self, channels: int, size: int, classes: int, width: float) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        pools = convolutions = 0
        for number in _FILTERS:
            if isinstance(number, str):
                pools += 1
                layers[f"pool{pools}"] = nn.MaxPool2d(2)
                size //= 2
                continue
            convolutions += 1
            layers[f"conv{convolutions}"] = nn.Conv2d(channels, scaled(number, width), 3, padding=1, bias=False)
            layers[f"norm{convolutions}"] = nn.BatchNorm2d(scaled(number, width))
            layers[f"relu{convolutions}"] = nn.ReLU(inplace=True)
            channels = scaled(number, width)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels * size**2, classes)
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew: He's normal distribution by fan-out; the classifier with standard deviation 0.01."""
        he(self)
