"""Moving the connections of a sparse layer: values, positions and the optimiser's state together."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from tombola.sparse.geometry import Geometry
from tombola.sparse.growth import GradientScores, Piece, RandomScores, Scores, best
from tombola.sparse.layer import SparseLayer


class Rewiring:
    """The connections of a sparse layer, as a method moves them. The layer changes in :meth:`finish` alone.

    They are in the order of the dense weight, so that ties are settled as in the dense layer.

    Args:
        layer: the layer.
        pieces: what its gradient is made of, for growing by it.
        group: of processes that share the batch out, or None.
    """

    def __init__(self, layer: SparseLayer, pieces: list[Piece], group: Any = None) -> None:
        self.size = layer.geometry.weights
        self._layer, self._pieces, self._group = layer, pieces, group
        self._before, self._order = in_dense_order(layer.places, layer.geometry)
        self._now = self._before
        self._magnitudes = ordered(layer.values.detach(), self._order).abs()

    @property
    def count(self) -> int:
        """Connections that there are."""
        return self._now.numel()

    def magnitudes(self) -> Tensor:
        """(count,): their absolute values; before anything is grown."""
        return self._magnitudes

    def keep(self, chosen: Tensor) -> None:
        """Drop those that are False in ``chosen``, (count,)."""
        self._now, self._magnitudes = self._now[chosen], self._magnitudes[chosen]

    def grow(self, number: int, *, by: Literal["gradient", "chance"], generator: torch.Generator) -> None:
        """Add the ``number`` best of the missing ones; what was dropped is among the candidates."""
        if number:
            geometry = self._layer.geometry
            scores: Scores = RandomScores(geometry, generator)
            if by == "gradient":
                scores = GradientScores(geometry, self._pieces, self._group)
            self._magnitudes = self._magnitudes.new_empty(0)  # no longer those of all
            self._now = torch.cat([self._now, best(scores, number, taken=self._now, generator=generator)]).sort().values

    @torch.no_grad()
    def finish(self, optimizer: Optimizer) -> None:
        """Change the layer: connections that stay keep value, gradient and state; what is new begins at 0."""
        before, now, values = self._before, self._now, self._layer.values
        if torch.equal(before, now):
            return
        places, order = in_layer_order(now, self._layer.geometry)
        now = ordered(now, order)
        found = torch.searchsorted(before, now).clamp_(max=max(len(before) - 1, 0))
        old = before[found] == now if len(before) else torch.zeros(len(now), dtype=torch.bool)
        source = found if self._order is None else self._order[found]

        def carried(tensor: Tensor) -> Tensor:
            return torch.where(old, tensor[source], 0) if len(before) else tensor.new_zeros(len(now))

        state = optimizer.state.get(values, {})
        entries = {
            key: entry for key, entry in state.items() if isinstance(entry, Tensor) and entry.shape == values.shape
        }
        if len(now) == len(before):
            for tensor in (values, values.grad, *entries.values()):
                if tensor is not None:
                    tensor.copy_(carried(tensor))
        else:
            state.update({key: carried(entry) for key, entry in entries.items()})
            gradient = None if values.grad is None else carried(values.grad)
            self._layer.resize(carried(values.detach()))
            values.grad = gradient
        self._layer.move(places)


def in_dense_order(places: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """Places in the flattened dense weight, ascending, of ``places`` in the layer; and which of these each one is.

    None: they are the same.
    """
    return _turned(places, geometry.taps, geometry.inputs // geometry.groups)


def in_layer_order(indices: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """The inverse."""
    return _turned(indices, geometry.inputs // geometry.groups, geometry.taps)


def ordered(tensor: Tensor, order: Tensor | None) -> Tensor:
    """``tensor`` in an ``order`` from above."""
    return tensor if order is None else tensor[order]


def _turned(places: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
    """Places in matrices of so many rows and columns, one behind the other, become those in the transposed matrices."""
    if rows == 1 or columns == 1:
        return places, None
    matrix, rest = places // (rows * columns), places % (rows * columns)
    turned, order = (matrix * (rows * columns) + rest % columns * rows + rest // columns).sort()
    return turned, order
