"""The networks of the ticket literature, small enough to read. Nothing is downloaded.

Weights are drawn from Glorot's normal distribution and biases start at 0, as in Frankle & Carbin (ICLR 2019) and in the
code of Savarese et al. (Continuous Sparsification). Sizes are of weights, without biases and norms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tombola.lab.errors import LabError
from tombola.lab.objects import call, resolve


def lenet_300_100(*, in_channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Module:
    """LeNet-300-100, fully connected: 266,200 weights for 28×28 images, 50,200 for 8×8 ones.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _Chain(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(in_channels * image_size**2, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


def conv_digits(*, in_channels: int = 1, image_size: int = 8, classes: int = 10) -> nn.Module:
    """A convolutional net for small digits: 16 and 32 filters of stride 2, fc 64. 13,584 weights for 8×8 images.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    side = -(-image_size // 4)
    return _Chain(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 16, 3, stride=2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * side**2, 64),
            relu3=nn.ReLU(),
            out=nn.Linear(64, classes),
        )
    )


def conv2(*, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> nn.Module:
    """Conv-2: 64, 64, pool, fc 256, 256. 4,300,992 weights for 32×32×3 images and 10 classes; no batch norm.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _convolutional((64, 64, "pool"), (256, 256), in_channels, image_size, classes)


def conv4(*, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> nn.Module:
    """Conv-4: 64, 64, pool, 128, 128, pool, fc 256, 256. 2,425,024 weights for 32×32×3 images and 10 classes.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    return _convolutional((64, 64, "pool", 128, 128, "pool"), (256, 256), in_channels, image_size, classes)


def conv6(*, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> nn.Module:
    """Conv-6: 64, 64, pool, 128, 128, pool, 256, 256, pool, fc 256, 256. 2,261,184 weights for 32×32×3, 10 classes.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    filters = (64, 64, "pool", 128, 128, "pool", 256, 256, "pool")
    return _convolutional(filters, (256, 256), in_channels, image_size, classes)


def resnet20(*, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> nn.Module:
    """The 20-layer residual net for CIFAR of the ticket papers: 270,896 weights, 267,696 of them under a mask.

    The papers also call it ResNet-18. Shortcuts are strided 1×1 convolutions *without* batch norm, as in the code of
    Savarese et al.; they and the classifier carry no mask (:func:`unmasked`). Any image size from 4 up will do, as the
    last feature map is averaged.

    Input: (N, in_channels, image_size, image_size). Output: (N, classes) logits.
    """
    del image_size  # the same net for every size; the argument is there so that all models are called alike
    return _ResNet(in_channels, classes)


class _Chain(nn.Sequential):
    """Layers one after the other, initialised as the papers do."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        _glorot(self)


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
    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(_Block(16, 16, 1), _Block(16, 16, 1), _Block(16, 16, 1))
        self.stage2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.stage3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.fc = nn.Linear(64, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        _glorot(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.conv0(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "conv_digits": conv_digits,
    "conv2": conv2,
    "conv4": conv4,
    "conv6": conv6,
    "resnet20": resnet20,
}

_UNMASKED = {"resnet20": ("stage2.0.shortcut.weight", "stage3.0.shortcut.weight", "fc.weight")}


def unmasked(name: str) -> tuple[str, ...]:
    """Parameters that the papers leave without a mask in the model ``name``; () for any other model."""
    return _UNMASKED.get(name, ())


def build(name: str, *, input_shape: Sequence[int], classes: int, seed: int) -> nn.Module:
    """The model ``name``, one of ``MODELS`` or the user's own ``module:function``, initialised from ``seed``.

    ``input_shape`` is that of one example. A user's function gets those of the arguments input_shape, classes and, for
    square images of shape (channels, size, size), in_channels and image_size that it names; it must return an
    ``nn.Module``. Happens on the CPU; PyTorch's global generator is left as it was.

    Raises:
        LabError: no such model, it does not fit the data, or the user's function fails or returns something else.
    """
    if name not in MODELS and ":" not in name:
        raise LabError(f"model {name!r}: there is {', '.join(MODELS)}; or give your own as module:function")
    arguments: dict[str, object] = {"input_shape": tuple(input_shape), "classes": classes}
    if len(input_shape) == 3 and input_shape[1] == input_shape[2]:
        arguments |= {"in_channels": input_shape[0], "image_size": input_shape[1]}
    elif name in MODELS:
        raise LabError(
            f"model {name!r} takes images of shape (channels, size, size), but one example of the data has shape "
            f"{tuple(input_shape)}; give a model of your own as module:function"
        )
    function = MODELS[name] if name in MODELS else resolve(name, "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = call(function, name, "model", arguments)
    if not isinstance(model, nn.Module):
        raise LabError(f"model {name!r}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _convolutional(
    filters: Sequence[int | str], hidden: Sequence[int], channels: int, size: int, classes: int
) -> nn.Module:
    """3×3 convolutions and 2×2 max-pools, then fully connected layers, ReLU after each but the last."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    convolutions = pools = 0
    for width in filters:
        if isinstance(width, str):
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
            size //= 2
            continue
        convolutions += 1
        layers[f"conv{convolutions}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"relu{convolutions}"] = nn.ReLU()
        channels = width
    if size == 0:
        raise LabError(f"the images are too small to be halved {pools} times; choose another model")
    layers["flatten"] = nn.Flatten()
    features = channels * size**2
    for place, width in enumerate(hidden, start=1):
        layers[f"fc{place}"] = nn.Linear(features, width)
        layers[f"fc{place}_relu"] = nn.ReLU()
        features = width
    layers["out"] = nn.Linear(features, classes)
    return _Chain(layers)


def _glorot(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
