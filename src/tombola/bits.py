"""A mask at one bit a weight, and zeroing the dropped weights of a tensor under it. Part of ``attach``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tombola.compiled import available

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_EXPONENTS = {  # the bits that all are 1 in infinity and NaN; other types are never seen to be finite
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF0000000000000,
}
_WORTH = 2**15  # weights that are worth another thread
_CHUNK = 2**25  # weights that are unpacked at a time on an accelerator
_PLAIN = (Tensor, nn.Parameter)


class PackedMask:
    """The mask of one parameter, a bit for each weight in the order of its memory."""

    def __init__(self, mask: Tensor, parameter: Tensor) -> None:
        self.shape, self.stride = parameter.shape, dense_stride(parameter)
        # the order of memory in which the compiled loop can be used
        self._usual = parameter.stride() if self.stride and parameter.is_cpu and available() else None
        ordered = torch.empty_like(parameter, dtype=torch.bool, requires_grad=False).copy_(mask)
        bits = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
        bits[: mask.numel()] = _flat(ordered) if self.stride else mask.flatten()
        place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
        self.bytes = (bits.view(-1, 8) * place).sum(1, dtype=torch.uint8)

    def mask(self) -> Tensor:
        """The mask as a bool tensor."""
        bits = _unpacking(torch.int8, self.bytes.device)[self.bytes.int()].flatten()[: self.shape.numel()] != 0
        return bits.as_strided(self.shape, self.stride) if self.stride else bits.view(self.shape)

    def clear(self, tensor: Tensor) -> None:
        """Zero ``tensor``, of the parameter's shape, where the weight is dropped, also if it is inf or NaN there."""
        clear([(tensor, self)])

    def address(self, tensor: Tensor) -> int:
        """That of ``tensor``, if the compiled loop can clear it: it has all that the parameter had; else 0."""
        usual = tensor.shape == self.shape and type(tensor) in _PLAIN and tensor.is_cpu
        return tensor.data_ptr() if usual and tensor.stride() == self._usual else 0

    def clear_anywhere(self, tensor: Tensor) -> None:
        """The same as :meth:`clear` in PyTorch's operations.

        A bitwise *and* with all bits or none does it in a fraction of the time of ``masked_fill_``.
        """
        if tensor.shape != self.shape or tensor.device != self.bytes.device:
            before = f"{tuple(self.shape)} on {self.bytes.device}"
            now = f"{tuple(tensor.shape)} on {tensor.device}"
            raise RuntimeError(f"a masked weight, {before}, is {now}; detach() before the model is moved or changed")
        if self.stride is not None and dense_stride(tensor) == self.stride:
            values = _flat(tensor)
            and_unpacked(values.view(_INTEGERS[values.element_size()]), self.bytes)
        else:
            tensor.masked_fill_(~self.mask(), 0)


def clear(layers: Iterable[tuple[Tensor, PackedMask]]) -> list[Tensor]:
    """Zero each tensor under its mask as :meth:`PackedMask.clear` does; those on the CPU in one sweep.

    Returns:
        those that are seen to be finite in the sweep, as far as they are kept.

    Raises:
        RuntimeError: a tensor has another shape, or is on another device, than the masked parameter.
    """
    swift: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for tensor, packed in layers:
        if packed.address(tensor):
            swift.setdefault(tensor.dtype, []).append((tensor, packed.bytes))
        else:
            packed.clear_anywhere(tensor)
    return [tensor for dtype, together in swift.items() for tensor in _sweep(dtype, together)]


def and_unpacked(values: Tensor, packed: Tensor, *, chunk: int = _CHUNK) -> None:
    """``values`` &= all bits or none, as the bits of ``packed`` say, on any device; ``chunk`` values at a time."""
    table = _unpacking(values.dtype, values.device)
    for begin in range(0, values.numel(), chunk):
        part = values[begin : begin + chunk]
        bits = torch.index_select(table, 0, packed[begin // 8 : (begin + chunk) // 8].int())
        part.bitwise_and_(bits.flatten()[: part.numel()])


def dense_stride(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor that fills its memory without gaps, in whatever order; None for any other."""
    strides = tuple(s if size > 1 else 0 for size, s in zip(tensor.shape, tensor.stride(), strict=True))
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1
    return strides if span == tensor.numel() else None


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


@cache
def _unpacking(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 8): for each byte its bits, lowest first, as integers of all bits or none."""
    byte = torch.arange(256, device=device).unsqueeze(1)
    return (byte >> torch.arange(8, device=device) & 1).to(dtype).neg_()


def _sweep(dtype: torch.dtype, layers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Clear tensors of one type under bits, by compiled code: those that are seen to be finite."""
    from tombola.sparse.threads import sweep  # imports Numba, which takes a while: not before there is a mask

    size, at = dtype.itemsize, [(values.data_ptr(), packed.data_ptr()) for values, packed in layers]

    def addresses(which: int, begin: int) -> tuple[int, int]:
        return at[which][0] + begin * size, at[which][1] + begin // 8

    endless = sweep(_kernel(dtype), [values.numel() for values, _ in layers], addresses, least=_WORTH)
    return [values for which, (values, _) in enumerate(layers) if which not in endless]


@cache
def _kernel(dtype: torch.dtype) -> Any:
    from tombola.sparse import clearing  # imports Numba

    return clearing.kernel(8 * dtype.itemsize, _EXPONENTS.get(dtype, 0))
