"""What the networks share: how weights begin, and how wide a layer is."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float) -> int:
    """So many channels in a net of that width multiplier, at least 1."""
    return max(1, round(channels * width))


def glorot(model: nn.Module) -> None:
    """Draw all weights anew from Glorot's normal distribution, as in the ticket papers."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def he(model: nn.Module) -> None:
    """Draw all weights anew: convolutions by fan-out for ReLU, linear layers with standard deviation 0.01."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
