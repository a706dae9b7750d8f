"""What stands between sparse layers: PyTorch's own modules, kept in the layout with the batch innermost.

Each is the module's class with one more step: a view in which PyTorch's kernels find contiguous memory. The modules
keep their parameters, buffers and names; an input in the usual layout goes the usual way. All classes have a name here,
so that the modules can be pickled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tombola.sparse.layout import inside, is_innermost, outside, usual
from tombola.sparse.norms import normalised


class _BatchNorm2d(nn.BatchNorm2d):
    relu = False  # whether a ReLU follows, which is then not a step of its own

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not is_innermost(x):
            y = super().forward(x)
            return torch.relu_(y) if self.relu else y
        if self.training and self.affine and x.dtype is torch.float32 and not torch.compiler.is_compiling():
            return self._normalised(x)
        turned = inside(x)
        channels, height, width, batch = turned.shape
        y = super().forward(turned.view(1, channels, height, width * batch)).view(turned.shape)
        return outside(torch.relu_(y) if self.relu else y)

    def _normalised(self, x: Tensor) -> Tensor:
        count = x.numel() // max(x.shape[1], 1)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        y, mean, variance = normalised(x, self.weight, self.bias, self.eps, relu=self.relu)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            self.running_mean.lerp_(mean, share)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * (count / (count - 1)), share)  # type: ignore[union-attr]
        return y


class _Pooling:
    """In (C, H, W, N) the batch is where ``channels_last`` has its channels, for images that are the channels."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not is_innermost(x):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return super().forward(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[misc, no-any-return]


class _MaxPool2d(_Pooling, nn.MaxPool2d):
    pass


class _AvgPool2d(_Pooling, nn.AvgPool2d):
    pass


class _AdaptiveAvgPool2d(_Pooling, nn.AdaptiveAvgPool2d):
    pass


class _AdaptiveMaxPool2d(_Pooling, nn.AdaptiveMaxPool2d):
    pass


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(usual(x))


class _Conv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(usual(x))


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or not is_innermost(x):
            return super().forward(x)
        turned = inside(x)  # (features, N): a product of matrices as well, and so is its gradient
        if self.bias is None:
            return outside(self.weight @ turned)
        return outside(torch.addmm(self.bias.unsqueeze(1), self.weight, turned))


class _LowPrecision:
    """A dense layer that multiplies in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(usual(x)).float()  # type: ignore[misc, no-any-return]


class _LowPrecisionConv1d(_LowPrecision, nn.Conv1d):
    pass


class _LowPrecisionConv2d(_LowPrecision, nn.Conv2d):
    pass


class _LowPrecisionLinear(_LowPrecision, nn.Linear):
    pass


_AWARE: dict[type[Any], type[Any]] = {
    nn.BatchNorm2d: _BatchNorm2d,
    nn.Conv1d: _Conv1d,
    nn.Conv2d: _Conv2d,
    nn.Linear: _Linear,
    nn.MaxPool2d: _MaxPool2d,
    nn.AvgPool2d: _AvgPool2d,
    nn.AdaptiveAvgPool2d: _AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d: _AdaptiveMaxPool2d,
}
_LOW: dict[type[Any], type[Any]] = {
    nn.Conv1d: _LowPrecisionConv1d,
    nn.Conv2d: _LowPrecisionConv2d,
    nn.Linear: _LowPrecisionLinear,
}
ABLE = tuple(_AWARE)  # the classes that can be made aware
LOW = tuple(_LOW)  # and those that can multiply in bfloat16
_PLAIN = {aware: plain for table in (_AWARE, _LOW) for plain, aware in table.items()}


def make_aware(module: nn.Module, *, low_precision: bool = False) -> None:
    """Let ``module`` itself take and give either layout, in place; nothing happens to other classes."""
    module.__class__ = (_LOW if low_precision else _AWARE).get(type(module), type(module))


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, or that which it had before it was made aware; of one in low precision its own."""
    found = type(module)
    return found if found in _LOW.values() else _PLAIN.get(found, found)


def make_plain(module: nn.Module) -> None:
    """The inverse."""
    module.__dict__.pop("relu", None)
    module.__class__ = _PLAIN.get(type(module), type(module))
