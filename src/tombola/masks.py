"""Masks: which weights of a model are kept. One type for every method, exact integer counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from tombola import sharded


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True where the weight is kept.

    A read-only mapping: to change a mask, make another ``Masks``. The order of the names is kept.

    Raises:
        TypeError: a value is not a bool tensor.
        ValueError: the mapping is empty.
    """

    def __init__(self, mapping: Mapping[str, Tensor]) -> None:
        if not mapping:
            raise ValueError("masks: no layer given; pass at least one parameter name with its bool tensor")
        for name, mask in mapping.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"masks: {name!r} is {kind}, not a bool tensor; make one with `tensor != 0`")
        self._masks = {name: mask.detach() for name, mask in mapping.items()}

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._masks[name]
        except KeyError:
            raise KeyError(f"no mask for {name!r}; there are masks for {', '.join(self._masks)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __contains__(self, name: object) -> bool:
        return name in self._masks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(m.cpu(), other[n].cpu()) for n, m in self.items())

    __hash__ = None  # type: ignore[assignment]  # tensors can be written to, so equal masks may not stay equal

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} weights kept, density {self.density:.4g})"

    def counts(self) -> dict[str, int]:
        """Kept weights of each layer."""
        return {name: int(sharded.total(mask)) for name, mask in self.items()}

    def sizes(self) -> dict[str, int]:
        """All weights of each layer, kept or not."""
        return {name: mask.numel() for name, mask in self.items()}

    @property
    def kept(self) -> int:
        """Kept weights of all layers together."""
        return sum(self.counts().values())

    @property
    def total(self) -> int:
        """Weights under a mask, kept or not."""
        return sum(self.sizes().values())

    @property
    def density(self) -> float:
        """Kept weights / weights under a mask, between 0 and 1."""
        return self.kept / max(self.total, 1)

    def dead(self) -> list[str]:
        """Names of the layers without a single kept weight."""
        return [name for name, kept in self.counts().items() if kept == 0]

    def overlap(self, other: Masks) -> float:
        """Weights kept by both / weights kept by either (Jaccard index), between 0 and 1.

        Raises:
            ValueError: the two do not cover the same layers with the same shapes.
        """
        check_same_layout(self, other)
        both = sum(int((mask & other[name].to(mask.device)).sum()) for name, mask in self.items())
        return both / max(self.kept + other.kept - both, 1)

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on ``device``."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def shuffled(self, generator: torch.Generator) -> Masks:
        """As many kept weights in each layer, at positions drawn from ``generator`` (a CPU generator)."""
        return Masks({n: m.flatten()[permutation(m, generator)].view(m.shape) for n, m in self.items()})

    def digest(self) -> str:
        """SHA-256 of names, shapes and bits, in hex: equal exactly when the masks are equal."""
        content = hashlib.sha256()
        for name in sorted(self):
            content.update(f"{name}{tuple(self[name].shape)}".encode())
            content.update(pack(self[name]).numpy().tobytes())
        return content.hexdigest()

    def table(self) -> str:
        """One line a layer: name, shape, kept weights, size and density; a total at the end."""
        counts = self.counts()
        rows = [(n, "×".join(map(str, m.shape)), counts[n], m.numel()) for n, m in self.items()]
        rows.append(("total", "", self.kept, self.total))
        width, shape = (max(len(str(row[i])) for row in rows) for i in (0, 1))
        return "\n".join(
            f"{n:<{width}}  {s:>{shape}}  {k:>12,} of {t:>12,}  {k / max(t, 1):8.4f}" for n, s, k, t in rows
        )


def check_same_layout(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first layer that only one of the two has, or whose shapes differ."""
    for name in [*one, *other]:
        if name not in one or name not in other:
            raise ValueError(f"masks differ in their layers: only one of the two has {name!r}")
        if one[name].shape != other[name].shape:
            raise ValueError(
                f"{name!r} has shape {tuple(one[name].shape)} in one and {tuple(other[name].shape)} in other"
            )


def permutation(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of the entries of ``tensor``, drawn on the CPU so that every device sees the same."""
    return torch.randperm(tensor.numel(), generator=generator).to(tensor.device)


def pack(mask: Tensor) -> Tensor:
    """Bool tensor of n entries -> uint8 CPU tensor of ceil(n / 8) bytes, first entry in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: the number of bytes does not fit the shape, or the bits behind the last entry are not 0.
    """
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != (count + 7) // 8:
        raise ValueError(f"{packed.numel()} packed bytes do not hold a mask of shape {tuple(shape)}")
    bits = np.unpackbits(packed.numpy())
    if bits[count:].any():
        raise ValueError(f"bits are set behind the end of a mask of shape {tuple(shape)}")
    return torch.from_numpy(bits[:count].astype(bool)).view(shape)


def largest(values: Tensor, keep: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Bool tensor, True at exactly the ``keep`` largest entries of ``values``; of equal ones, those that come first.

    With a (CPU) ``generator`` it draws among equal ones.
    """
    if sharded.is_sharded(values):
        return sharded.largest([values], keep, generator)[0]
    if not 0 <= keep <= values.numel():
        raise ValueError(f"cannot keep {keep} of {values.numel()} weights")
    flat = values.detach().flatten()
    if keep == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = flat.kthvalue(flat.numel() - keep + 1).values
    chosen = flat > threshold
    level = (flat == threshold).nonzero().squeeze(1)
    if generator is not None:
        level = level[permutation(level, generator)]
    missing = keep - int(chosen.sum())
    if missing > level.numel():
        raise FloatingPointError("weights cannot be ranked: there is NaN among them, their scores or gradients")
    chosen[level[:missing]] = True
    return chosen.view(values.shape)


def largest_of(
    tensors: Mapping[str, Tensor], keep: int, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """:func:`largest` of all tensors together, one behind the other."""
    if any(map(sharded.is_sharded, tensors.values())):
        return dict(zip(tensors, sharded.largest(list(tensors.values()), keep, generator), strict=True))
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    chosen = largest(flat, keep, generator=generator).split([tensor.numel() for tensor in tensors.values()])
    return {name: mine.view(tensors[name].shape) for name, mine in zip(tensors, chosen, strict=True)}
