"""MobileNet-v1. Howard et al., arXiv 1704.04861."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tombola.lab.models.initial import he, scaled

_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def mobilenet_v1(*, in_channels: int = 3, classes: int = 1000, width: float = 1.0) -> nn.Module:
    """MobileNet-v1: 4,209,088 weights, 568.7 million multiply-adds at 224×224.

    The papers leave the first and the depthwise convolutions dense and outside the budget.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiplier of all numbers of channels, for small dense (0.353) and big sparse (2.52) comparisons.

    Input: (N, in_channels, H, W). Output: (N, classes) logits.
    """
    return _MobileNet(in_channels, classes, width)


class _MobileNet(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=_unit(nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False))
        )
        for place, (base, stride) in enumerate(_STAGES, start=1):
            outputs = scaled(base, width)
            depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
            layers[f"depthwise{place}"] = _unit(depthwise)
            layers[f"pointwise{place}"] = _unit(nn.Conv2d(channels, outputs, 1, bias=False))
            channels = outputs
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew: He's normal distribution by fan-out; the classifier with standard deviation 0.01."""
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _unit(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(conv.out_channels), relu=nn.ReLU()))
