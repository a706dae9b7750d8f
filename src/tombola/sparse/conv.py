"""Convolutions that keep their non-zeros alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tombola.sparse.geometry import Geometry, Pair
from tombola.sparse.layer import SparseLayer

Size = int | tuple[int, ...]


class _SparseConvolution(SparseLayer):
    """In one or two dimensions; the former is the latter in images of one row."""

    dense: ClassVar[type[nn.Conv1d | nn.Conv2d]]
    _form: ClassVar[str]  # of the input

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | Literal["same", "valid"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        density: float | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if min(in_channels, out_channels, groups) < 1:
            sizes = f"{in_channels} and {out_channels} channels in {groups} groups"
            raise ValueError(f"{type(self).__name__}: {sizes}; each must be 1 or more")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{in_channels} and {out_channels} channels cannot be shared out among {groups} groups")
        kernel, strides, dilations = (self._all(size) for size in (kernel_size, stride, dilation))
        paddings = _paddings(padding, kernel, strides, dilations) if isinstance(padding, str) else self._all(padding)
        pairs = _pair(kernel, 1), _pair(strides, 1), _pair(paddings, 0), _pair(dilations, 1)
        geometry = Geometry(in_channels, out_channels, *pairs, groups)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(geometry, shape, bias=bias, density=density, mask=mask, generator=generator)

    @classmethod
    def _all(cls, size: Size) -> tuple[int, ...]:
        dimensions = len(cls._form.split(", ")) - 2
        sizes = (size,) * dimensions if isinstance(size, int) else tuple(size)
        if len(sizes) != dimensions:
            raise ValueError(f"{cls.__name__}: {size} is not one size or {dimensions}")
        return sizes

    @classmethod
    def from_dense(cls, layer: Any, mask: Tensor | None = None) -> Self:
        """The same layer with the weights under ``mask`` alone; None: with those that are not zero.

        Raises:
            ValueError: it pads with something else than zeros, or differently on the two sides.
        """
        if layer.padding_mode != "zeros":
            raise ValueError(f"a sparse convolution pads with zeros, not with {layer.padding_mode!r}")
        mask = layer.weight.detach() != 0 if mask is None else mask
        size = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        sparse = cls(*size, layer.groups, layer.bias is not None, mask=mask)
        sparse.take_parameters(layer)
        return sparse

    def to_dense(self) -> Any:
        """The same layer with zeros for the missing weights."""
        g = self.geometry
        kernel, *rest = (pair[2 - len(self.shape[2:]) :] for pair in (g.kernel, g.stride, g.padding, g.dilation))
        dense: Any = self.dense
        layer = dense(g.inputs, g.outputs, kernel, *rest, g.groups, self.bias is not None)
        self.give_parameters(layer)
        return layer

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """See the class; with ``added``, the sum of the output and that."""
        if x.ndim != len(self.shape) or x.shape[1] != self.geometry.inputs:
            raise self._refused(x, f"({self._form})")
        return self._multiply(x, added)


class SparseConv2d(_SparseConvolution):
    """``nn.Conv2d`` (zero padding) whose memory and arithmetic, in training and inference, follow its non-zeros.

    The arguments are those of ``nn.Conv2d``, and:

    Args:
        density: share of the weights that are there, at random places; exactly ``round(density · weights)``.
        mask: instead, bool, of the dense weight's shape: which weights are there.
        generator: draws places and values.

    Input: (N, C, H, W), float32 on the CPU. Output: (N, O, H', W'), with the batch innermost in memory; an input that
    lies so already, as from another sparse layer, is not copied.

    Raises:
        ValueError: density out of range, a mask that does not fit, more non-zeros than 32 bits can count, or
            ``padding="same"`` with a stride or with a kernel that needs more of it on one side.
    """

    dense, _form = nn.Conv2d, "N, C, H, W"


class SparseConv1d(_SparseConvolution):
    """``nn.Conv1d`` (zero padding) whose memory and arithmetic follow its non-zeros. As :class:`SparseConv2d`.

    Input: (N, C, L), float32 on the CPU. Output: (N, O, L').
    """

    dense, _form = nn.Conv1d, "N, C, L"


def _pair(sizes: tuple[int, ...], missing: int) -> Pair:
    return (missing, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _paddings(
    padding: str, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """The numbers that PyTorch's words stand for."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding != "same":
        raise ValueError(f"padding must be numbers, 'same' or 'valid', not {padding!r}")
    if any(stride != 1 for stride in strides):
        raise ValueError(f"padding='same' is for a stride of 1, not {strides}")
    both = _both_sides(kernel, dilations)
    if any(sides % 2 for sides in both):
        raise ValueError("padding='same' with an even kernel pads one side more, which a sparse convolution cannot")
    return tuple(sides // 2 for sides in both)


def _both_sides(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """What ``padding="same"`` adds to each dimension."""
    return [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]


def pads_evenly(layer: Any) -> bool:
    """Whether a dense convolution with ``padding="same"`` pads on both sides alike."""
    return not any(sides % 2 for sides in _both_sides(layer.kernel_size, layer.dilation))
