"""A fully connected layer that keeps its non-zeros alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tombola.sparse.geometry import Geometry
from tombola.sparse.layer import SparseLayer


class SparseLinear(SparseLayer):
    """``nn.Linear`` whose memory and arithmetic, in training and inference, follow its non-zeros.

    Args:
        in_features: inputs.
        out_features: outputs.
        bias: whether there is one.
        density: share of the weights that are there, at random places; exactly ``round(density · weights)``.
        mask: instead, bool (out_features, in_features): which weights are there.
        generator: draws places and values.

    Input: (…, in_features), float32 on the CPU. Output: (…, out_features), with the batch innermost in memory; an input
    that lies so already, as from another sparse layer, is not copied.

    Raises:
        ValueError: density out of range, a mask that does not fit, or more non-zeros than 32 bits can count.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        geometry, shape = Geometry(in_features, out_features), (out_features, in_features)
        super().__init__(geometry, shape, bias=bias, density=density, mask=mask, generator=generator)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> SparseLinear:
        """The same layer with the weights under ``mask`` alone; None: with those that are not zero."""
        mask = layer.weight.detach() != 0 if mask is None else mask
        sparse = cls(layer.in_features, layer.out_features, layer.bias is not None, mask=mask)
        sparse.take_parameters(layer)
        return sparse

    def to_dense(self) -> nn.Linear:
        """The same layer with zeros for the missing weights."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        self.give_parameters(layer)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        if not x.ndim or x.shape[-1] != self.in_features:
            raise self._refused(x, "(…, in_features)")
        if x.ndim == 2:
            return self._multiply(x)
        rows = math.prod(x.shape[:-1])  # of an empty layer it could not be told from the number of entries
        flat = x.movedim(-1, 0).reshape(self.in_features, rows).T  # one copy, even if the features are neither end
        return self._multiply(flat).view(*x.shape[:-1], self.out_features)
