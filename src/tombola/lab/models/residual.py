"""Residual networks for CIFAR and ImageNet in the forms that the sparse-training papers use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tombola.lab.models.initial import he, scaled


def resnet18(*, in_channels: int = 3, classes: int = 1000, width: float = 1.0) -> nn.Module:
    """ResNet-18 for ImageNet: 11,678,912 weights, 1,814,073,344 multiply-adds at 224×224.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiplier of all numbers of channels.

    Input: (N, in_channels, H, W). Output: (N, classes) logits.
    """
    return _ResNet(_Basic, (2, 2, 2, 2), in_channels, classes, width, small=False)


def resnet18_cifar(*, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> nn.Module:
    """ResNet-18 for small images: 11,164,352 weights, 555,422,720 multiply-adds at 32×32.

    It begins with a 3×3 convolution of stride 1 and does not pool, else it is :func:`resnet18`. The ticket papers'
    "ResNet-18" is another net, ``resnet20``.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiplier of all numbers of channels.

    Input: (N, in_channels, H, W). Output: (N, classes) logits.
    """
    return _ResNet(_Basic, (2, 2, 2, 2), in_channels, classes, width, small=True)


def resnet50(*, in_channels: int = 3, classes: int = 1000, width: float = 1.0) -> nn.Module:
    """ResNet-50 with the stride on the 3×3 convolutions: 25,502,912 weights, 4,089,184,256 multiply-adds at 224×224.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiplier of all numbers of channels, for small dense (0.34) and big sparse (2.8) comparisons.

    Input: (N, in_channels, H, W). Output: (N, classes) logits.
    """
    return _ResNet(_Bottleneck, (3, 4, 6, 3), in_channels, classes, width, small=False)


def wide_resnet(*, depth: int = 22, width: float = 2, in_channels: int = 3, classes: int = 10) -> nn.Module:
    """Wide residual network of Zagoruyko & Komodakis (2016), pre-activation, for CIFAR.

    WRN-22-2, the default, has 1,076,912 weights and 157,730,048 multiply-adds at 32×32.

    Args:
        depth: 6n + 4 layers, with n blocks in each of the three stages.
        width: multiplier of the 16, 32 and 64 channels of the stages.
        in_channels: of the images.
        classes: number of classes.

    Input: (N, in_channels, H, W). Output: (N, classes) logits.

    Raises:
        ValueError: no such depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"a wide ResNet has 6n + 4 layers (10, 16, 22, 28, 40, …), not {depth}")
    return _WideResNet((depth - 4) // 6, width, in_channels, classes)


def wrn_16_4(*, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> nn.Module:
    """WRN-16-4, see :func:`wide_resnet`; ``width`` multiplies its own factor of 4, so that 0.5 makes WRN-16-2."""
    return wide_resnet(depth=16, in_channels=in_channels, classes=classes, width=4 * width)


def wrn_22_2(*, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> nn.Module:
    """WRN-22-2, see :func:`wide_resnet`; ``width`` multiplies its own factor of 2."""
    return wide_resnet(in_channels=in_channels, classes=classes, width=2 * width)


def wrn_28_10(*, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> nn.Module:
    """WRN-28-10, see :func:`wide_resnet`; ``width`` multiplies its own factor of 10."""
    return wide_resnet(depth=28, in_channels=in_channels, classes=classes, width=10 * width)


def wrn_40_2(*, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> nn.Module:
    """WRN-40-2, see :func:`wide_resnet`; ``width`` multiplies its own factor of 2."""
    return wide_resnet(depth=40, in_channels=in_channels, classes=classes, width=2 * width)


class _Basic(nn.Module):
    growth = 1

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(nn.Module):
    growth = 4

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class _ResNet(nn.Module):
    def __init__(
        self,
        block: type[_Basic] | type[_Bottleneck],
        blocks: Sequence[int],
        in_channels: int,
        classes: int,
        width: float,
        *,
        small: bool,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        stages = []
        for stage, number in enumerate(blocks):
            inner, outputs = scaled(64 * 2**stage, width), scaled(64 * 2**stage * block.growth, width)
            first = block(channels, outputs, 2 if stage else 1, inner)
            stages.append(nn.Sequential(first, *(block(outputs, outputs, 1, inner) for _ in range(number - 1))))
            channels = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew: He's normal distribution by fan-out; the classifier with standard deviation 0.01."""
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return y + kept  # type: ignore[no-any-return]


class _WideResNet(nn.Module):
    def __init__(self, blocks: int, width: float, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels, layers = 16, []
        for stage, base in enumerate((16, 32, 64)):
            for block in range(blocks):
                layers.append(_WideBlock(channels, scaled(base, width), 2 if stage and block == 0 else 1))
                channels = scaled(base, width)
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew: He's normal distribution by fan-out; the classifier with standard deviation 0.01."""
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
