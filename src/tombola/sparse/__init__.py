"""Really sparse networks: layers whose memory and arithmetic, in training and inference, follow their non-zeros."""

from tombola.sparse.conv import SparseConv1d, SparseConv2d
from tombola.sparse.convert import Converted, convert
from tombola.sparse.gru import SparseGRU
from tombola.sparse.layer import SparseLayer
from tombola.sparse.linear import SparseLinear
from tombola.sparse.measure import Measured, measure
from tombola.sparse.store import load, save

__all__ = [
    "Converted",
    "Measured",
    "SparseConv1d",
    "SparseConv2d",
    "SparseGRU",
    "SparseLayer",
    "SparseLinear",
    "convert",
    "load",
    "measure",
    "save",
]
