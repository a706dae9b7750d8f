"""ResNet-20 for CIFAR, as the ticket papers have it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tombola.lab.models.initial import glorot, scaled


def resnet20(*, in_channels: int = 3, image_size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """The 20-layer residual net for CIFAR of the ticket papers: 270,896 weights, 267,696 of them under a mask.

    The papers also call it ResNet-18. Shortcuts are strided 1×1 convolutions *without* batch norm, as in the code of
    Savarese et al.; they and the classifier carry no mask (:func:`unmasked`). Any image size from 4 up will do, as the
    last feature map is averaged.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    del image_size  # the same net for every size; the argument is there so that all models are called alike
    return _ResNet(in_channels, classes, width)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: float) -> None:
        super().__init__()
        first, second, third = (scaled(channels, width) for channels in (16, 32, 64))
        self.conv0 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(first)
        self.stage1 = nn.Sequential(_Block(first, first, 1), _Block(first, first, 1), _Block(first, first, 1))
        self.stage2 = nn.Sequential(_Block(first, second, 2), _Block(second, second, 1), _Block(second, second, 1))
        self.stage3 = nn.Sequential(_Block(second, third, 2), _Block(third, third, 1), _Block(third, third, 1))
        self.fc = nn.Linear(third, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        glorot(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.conv0(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
