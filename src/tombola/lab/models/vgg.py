"""VGG-16 and VGG-19 for CIFAR, with batch norm. Simonyan & Zisserman, arXiv 1409.1556; this form as in Liu et al.,
"Rethinking the Value of Network Pruning", arXiv 1810.05270."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.models.initial import he, scaled

_STAGES = (64, 128, 256, 512, 512)  # filters; a pool ends each stage
_VGG16, _VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions in each


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
    return _VGG(_VGG16, in_channels, image_size, classes, width)


def vgg19(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-19 with batch norm and one linear layer: 20,024,000 weights, 398,136,320 multiply-adds at 32×32.

    Frankle & Carbin (ICLR 2019) leave the linear layer without a mask (:func:`unmasked`). Else as :func:`vgg16`.
    """
    return _VGG(_VGG19, in_channels, image_size, classes, width)


class _VGG(nn.Sequential):
    def __init__(self, stages: Sequence[int], channels: int, size: int, classes: int, width: float) -> None:
        if size < 2 ** len(stages):
            raise LabError(f"vgg halves images {len(stages)} times, so {size}×{size} is too small; give 32×32 or more")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        convolutions = 0
        for stage, (number, filters) in enumerate(zip(stages, _STAGES, strict=True), start=1):
            for _ in range(number):
                convolutions += 1
                layers[f"conv{convolutions}"] = nn.Conv2d(channels, scaled(filters, width), 3, padding=1, bias=False)
                layers[f"norm{convolutions}"] = nn.BatchNorm2d(scaled(filters, width))
                layers[f"relu{convolutions}"] = nn.ReLU(inplace=True)
                channels = scaled(filters, width)
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
            size //= 2
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels * size**2, classes)
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew: He's normal distribution by fan-out; the classifier with standard deviation 0.01."""
        he(self)
