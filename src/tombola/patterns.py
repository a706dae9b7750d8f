"""Patterns: which sets of weights a mask may keep, when it may not keep any set at all.

A pattern divides a layer into groups of units, and every group keeps as many units as any other: N of M neighbours
(2:4), the same number of inputs of each output, or whole blocks. Methods take one as ``pattern=``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tombola.masks import largest
from tombola.sharded import is_sharded, placed, whole


@runtime_checkable
class Pattern(Protocol):
    """How a layer's weights, of shape (outputs, inputs, *kernel), fall into groups of units."""

    def units(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Number of groups, units in each, weights in a unit.

        Raises:
            ValueError: a layer of this shape cannot be divided so.
        """

    def split(self, tensor: Tensor) -> Tensor:
        """(groups, units, weights): the entries of a tensor of the layer's shape."""

    def join(self, split: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split`."""


@dataclass(frozen=True)
class NM:
    """N of each M neighbouring inputs of an output, at each place of a kernel; 2:4 is ``NM(2, 4)``.

    It fixes the density of every layer, N/M. Mishra et al., arXiv 2104.08378; Zhou et al., ICLR 2021, arXiv 2102.04010.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 1 <= self.n < self.m):
            raise ValueError(f"an N:M pattern needs 1 ≤ N < M, not {self.n!r}:{self.m!r}")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def units(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Groups of M inputs."""
        if shape[1] % self.m:
            raise ValueError(f"{shape[1]} inputs do not fall into groups of {self.m}")
        return math.prod(shape) // self.m, self.m, 1

    def split(self, tensor: Tensor) -> Tensor:
        """Inputs become the last dimension."""
        return tensor.movedim(1, -1).reshape(-1, self.m, 1)

    def join(self, split: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split`."""
        return split.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


@dataclass(frozen=True)
class ConstantFanIn:
    """The same number of weights for each output. Lasby et al. (SRigL), ICLR 2024, arXiv 2305.02299.

    Args:
        ablate: γ_sal. When connections move, an output with fewer salient weights than this share of its fan-in (or
            with none) is given up, and the others share its weights: the fan-in grows. Salient are the weights that
            are not dropped and the missing ones that would grow first. So many outputs stay as the layer's weights
            need, and all of the last masked layer, whose outputs are the network's. SRigL has 0.3 for convolutional
            networks and 0.95 for vision transformers. 0: every output stays. Methods that do not move connections
            keep every output.

    Differs from the authors' code in: the share is rounded up, as in the paper; what was given up stays so.
    """

    ablate: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.ablate, int | float) and 0 <= self.ablate <= 1):
            raise ValueError(f"ablate is a share of the fan-in, from 0 to 1, not {self.ablate!r}")

    def __str__(self) -> str:
        return f"fan-in:{self.ablate:g}" if self.ablate else "fan-in"

    def fan_ins(self, before: Tensor, salient: Tensor, total: int) -> Tensor:
        """How many weights each output is to have after a move, (outputs,): the same number, or none.

        Args:
            before: bool, the connections before the move, (outputs, inputs).
            salient: bool, the salient ones, (outputs, inputs).
            total: the most that all together may have.
        """
        fan_in = before.sum(1)
        enough = salient.sum(1) >= (self.ablate * fan_in).ceil().clamp(min=1)
        alive = (fan_in > 0) & enough
        least = -(-total // before.shape[1])  # outputs that it takes to hold all weights
        if int(alive.sum()) < least:
            alive = largest(torch.where(fan_in > 0, salient.sum(1), -1), least)
        return torch.where(alive, total // int(alive.sum()), 0)

    def units(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """One group for each output."""
        return shape[0], math.prod(shape[1:]), 1

    def split(self, tensor: Tensor) -> Tensor:
        """A row for each output."""
        return tensor.reshape(tensor.shape[0], -1, 1)

    def join(self, split: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split`."""
        return split.reshape(tuple(shape))


@dataclass(frozen=True)
class Block:
    """Blocks of so many outputs and inputs, kept or dropped whole; of a convolution, with all places of the kernel."""

    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and size >= 1 for size in (self.outputs, self.inputs)):
            raise ValueError(f"a block needs whole numbers of outputs and inputs, not {self.outputs!r}×{self.inputs!r}")

    def __str__(self) -> str:
        return f"{self.outputs}×{self.inputs}"

    def units(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """One group of all blocks."""
        if shape[0] % self.outputs or shape[1] % self.inputs:
            raise ValueError(f"{shape[0]} outputs and {shape[1]} inputs do not fall into blocks of {self}")
        weights = self.outputs * self.inputs * math.prod(shape[2:])
        return 1, math.prod(shape) // weights, weights

    def split(self, tensor: Tensor) -> Tensor:
        """Blocks row by row."""
        rows, columns = tensor.shape[0] // self.outputs, tensor.shape[1] // self.inputs
        blocks = tensor.reshape(rows, self.outputs, columns, self.inputs, -1).transpose(1, 2)
        return blocks.reshape(1, rows * columns, -1)

    def join(self, split: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split`."""
        rows, columns = shape[0] // self.outputs, shape[1] // self.inputs
        blocks = split.reshape(rows, columns, self.outputs, self.inputs, -1).transpose(1, 2)
        return blocks.reshape(tuple(shape))


def fitted(counts: Mapping[str, int], shapes: Mapping[str, Sequence[int]], pattern: Pattern) -> dict[str, int]:
    """The nearest counts that ``pattern`` can keep: the same number of units in each group, at least one.

    Raises:
        ValueError: a layer cannot be divided so; the message names it. An N:M pattern with another density.
    """
    fits = {}
    for name, count in counts.items():
        try:
            groups, units, weights = pattern.units(shapes[name])
        except ValueError as error:
            raise ValueError(f"pattern: {name!r} does not fit {pattern}: {error}; leave it out with select=…") from None
        each = min(units, max(1, round(count / (groups * weights))))
        if isinstance(pattern, NM) and each != pattern.n:
            density = f"{pattern.n / pattern.m:.4g}"
            raise ValueError(
                f"pattern: {pattern} keeps {density} of every layer, but the budget gives {name!r} "
                f"{count} of {math.prod(shapes[name])} weights; ask for density={density} with budget=uniform"
            )
        fits[name] = groups * each * weights
    return fits


def choose(scores: Tensor, keep: int, pattern: Pattern | None, generator: torch.Generator) -> Tensor:
    """Bool tensor of the ``keep`` best entries of ``scores`` that ``pattern`` allows; ties are drawn.

    A unit is as good as the sum of its entries. ``keep`` is one of :func:`fitted`.
    """
    if pattern is None:
        return largest(scores, keep, generator=generator)
    if is_sharded(scores):  # a group may lie over several ranks
        return placed(choose(whole(scores), keep, pattern, generator), scores)
    groups, _, weights = pattern.units(scores.shape)
    needed = torch.full((groups,), keep // (groups * weights), device=scores.device)
    return complete(torch.zeros_like(scores, dtype=torch.bool), scores, needed, pattern, generator)


def complete(kept: Tensor, scores: Tensor, needed: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
    """``kept`` with the best other units, so that each group of ``pattern`` has as many as ``needed`` says.

    Args:
        kept: bool, of the layer's shape, whole units.
        scores: 0 or more, of the layer's shape.
        needed: units wanted in each group, (groups,).
        pattern: the division.
        generator: settles ties.
    """
    there = pattern.split(kept).all(2)
    value = pattern.split(scores).sum(2).masked_fill(there, torch.inf)  # first in their group
    order = torch.randperm(value.shape[1], generator=generator).to(value.device)
    places = value[:, order].argsort(stable=True, dim=1, descending=True).argsort(dim=1)
    chosen = torch.empty_like(there)
    chosen[:, order] = places < needed.unsqueeze(1)
    expanded = chosen.unsqueeze(2).expand(pattern.split(kept).shape)
    return pattern.join(expanded, kept.shape).contiguous()
