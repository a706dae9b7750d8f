"""The networks of the literature, small enough to read, and the user's own. Nothing is downloaded.

Weights of the nets of the ticket papers are drawn from Glorot's normal distribution and biases start at 0, as in
Frankle & Carbin (ICLR 2019) and in the code of Savarese et al. (Continuous Sparsification); those of the nets of the
sparse-training papers from He's. Sizes are of weights, without biases and norms. ``width`` multiplies the numbers of
channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.models.gru_lm import gru_lm
from tombola.lab.models.mobilenet import mobilenet_v1
from tombola.lab.models.plain import conv2, conv4, conv6, conv_digits, lenet_100_69, lenet_300_100
from tombola.lab.models.residual import (
    resnet18,
    resnet18_cifar,
    resnet50,
    wide_resnet,
    wrn_16_4,
    wrn_22_2,
    wrn_28_10,
    wrn_40_2,
)
from tombola.lab.models.resnet20 import resnet20
from tombola.lab.models.vgg import vgg16, vgg19
from tombola.lab.objects import call, resolve

__all__ = [
    "MODELS",
    "build",
    "conv2",
    "conv4",
    "conv6",
    "conv_digits",
    "gru_lm",
    "lenet_100_69",
    "lenet_300_100",
    "mobilenet_v1",
    "resnet18",
    "resnet18_cifar",
    "resnet20",
    "resnet50",
    "unmasked",
    "vgg16",
    "vgg19",
    "wide_resnet",
    "width_for",
    "wrn_16_4",
    "wrn_22_2",
    "wrn_28_10",
    "wrn_40_2",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "lenet_100_69": lenet_100_69,
    "conv_digits": conv_digits,
    "conv2": conv2,
    "conv4": conv4,
    "conv6": conv6,
    "resnet20": resnet20,
    "wrn_16_4": wrn_16_4,
    "wrn_22_2": wrn_22_2,
    "wrn_28_10": wrn_28_10,
    "wrn_40_2": wrn_40_2,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet18_cifar": resnet18_cifar,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
    "gru_lm": gru_lm,
}

WIDTH_STEP = 1e-4
_UNMASKED = {
    **dict.fromkeys(("wrn_16_4", "wrn_22_2", "wrn_28_10", "wrn_40_2"), ("conv1.weight",)),
    "resnet20": ("stage2.0.shortcut.weight", "stage3.0.shortcut.weight", "fc.weight"),
    "vgg19": ("fc.weight",),
    "mobilenet_v1": ("features.conv0.conv.weight", *(f"features.depthwise{n}.conv.weight" for n in range(1, 14))),
}


def unmasked(name: str) -> tuple[str, ...]:
    """Parameters that the papers leave without a mask in the model ``name``; () for any other model."""
    return _UNMASKED.get(name, ())


def build(name: str, *, input_shape: Sequence[int], classes: int, seed: int, width: float = 1.0) -> nn.Module:
    """The model ``name``, one of ``MODELS`` or the user's own ``module:function``, initialised from ``seed``.

    ``input_shape`` is that of one example. A user's function gets those of the arguments input_shape, classes, width
    (unless it is 1) and, for square images of shape (channels, size, size), in_channels and image_size that it names;
    it must return an ``nn.Module``. Happens on the CPU; PyTorch's global generator is left as it was.

    Raises:
        LabError: no such model, it does not fit the data, or the user's function fails or returns something else, or
            it takes no width and one is asked for.
    """
    if name not in MODELS and ":" not in name:
        raise LabError(f"model {name!r}: there is {', '.join(MODELS)}; or give your own as module:function")
    arguments: dict[str, object] = {"input_shape": tuple(input_shape), "classes": classes}
    if len(input_shape) == 3 and input_shape[1] == input_shape[2]:
        arguments |= {"in_channels": input_shape[0], "image_size": input_shape[1]}
    elif name in MODELS and "in_channels" in inspect.signature(MODELS[name]).parameters:
        raise LabError(
            f"model {name!r} takes images of shape (channels, size, size), but one example of the data has shape "
            f"{tuple(input_shape)}; give a model of your own as module:function"
        )
    function = MODELS[name] if name in MODELS else resolve(name, "model")
    if width != 1:  # else whatever a function means by its own width stays as it is
        if "width" not in inspect.signature(function).parameters:
            raise LabError(f"model {name!r} takes no argument width, so it comes in one width only")
        arguments["width"] = width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = call(function, name, "model", arguments)
    if not isinstance(model, nn.Module):
        raise LabError(f"model {name!r}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model


def width_for(model: Callable[[float], nn.Module], parameters: int) -> float:
    """The width multiplier that gives a network nearest to so many parameters, biases and norms included.

    For the dense net as small as a sparse one, ``width_for(model, round(density * size))``, and for the sparse net as
    big as a dense one, ``width_for(model, round(size / density))``.

    Args:
        model: width -> network, for instance ``lambda width: resnet20(width=width)``.
        parameters: wanted in all.

    Raises:
        ValueError: the network is larger at its narrowest, or does not grow with its width.
    """

    @cache
    def size(steps: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in model(steps * WIDTH_STEP).parameters())

    low, high = 1, round(1 / WIDTH_STEP)
    if size(low) > parameters:
        raise ValueError(
            f"width_for: even at its narrowest the network has {size(low):,} parameters, not {parameters:,}"
        )
    while size(high) < parameters:
        low, high = high, 2 * high
        if high * WIDTH_STEP > 1000:
            raise ValueError(
                f"width_for: even {low * WIDTH_STEP:g} times as wide the network has {size(low):,} parameters"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    nearest = low if parameters - size(low) < size(high) - parameters else high
    return round(nearest * WIDTH_STEP, 4)
