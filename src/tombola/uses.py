"""Which weights a module multiplies with in a forward pass, and how often: the rules that ``flops`` counts by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from tombola.sparse.gru import SparseGRU
    from tombola.sparse.layer import SparseLayer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LOOK_UPS = (nn.Embedding, nn.EmbeddingBag)


class Use(NamedTuple):
    """Rows of a module's parameter, and how many times a forward pass multiplies with each weight in them."""

    parameter: str
    times: int
    rows: slice = slice(None)


Rule: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Iterator[Use]]


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module; None: it has no weights to multiply with, or none that is known."""
    if isinstance(module, (nn.Linear, *_TRANSPOSED)):
        return _per_input
    if isinstance(module, _CONVOLUTIONS):
        return _per_output
    if isinstance(module, nn.RNNBase):
        return recurrent
    if isinstance(module, nn.RNNCellBase):
        return _cell
    if isinstance(module, nn.MultiheadAttention):
        return _attention
    from tombola.sparse.gru import SparseGRU, SparseWeight
    from tombola.sparse.layer import SparseLayer

    if isinstance(module, SparseGRU):
        return recurrent
    return _per_place if isinstance(module, SparseLayer) and not isinstance(module, SparseWeight) else None


def _per_input(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Iterator[Use]:
    """Linear and transposed convolutions: each weight once for each input position."""
    x = _first(args, kwargs)
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    yield Use("weight", x.numel() // channels)


def _per_output(module: nn.Conv2d, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Iterator[Use]:
    """Convolutions: each weight once for each output position, whatever groups, stride and dilation."""
    yield Use("weight", output.numel() // module.out_channels)


def _per_place(module: SparseLayer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Iterator[Use]:
    """Sparse layers: each connection once for each output position."""
    yield Use("values", output.numel() // max(module.geometry.outputs, 1))


def recurrent(
    module: nn.RNNBase | SparseGRU, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Iterator[Use]:
    """RNN, LSTM, GRU: each weight once for each element of the sequences."""
    x = _first(args, kwargs)
    x = x.data if isinstance(x, PackedSequence) else x
    for name, _ in module.named_parameters():
        if name.startswith("weight"):
            yield Use(name, x.numel() // module.input_size)


def _cell(module: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Iterator[Use]:
    for name in ("weight_ih", "weight_hh"):
        yield Use(name, _first(args, kwargs).numel() // module.input_size)


def _attention(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Iterator[Use]:
    """The projections of query, key and value, and that of the output (which is no call of its own)."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    width = module.embed_dim
    queries, keys, values = (given[key].numel() // given[key].shape[-1] for key in ("query", "key", "value"))
    if module.in_proj_weight is not None:
        for index, times in enumerate((queries, keys, values)):
            yield Use("in_proj_weight", times, slice(index * width, (index + 1) * width))
    else:
        for name, times in (("q_proj_weight", queries), ("k_proj_weight", keys), ("v_proj_weight", values)):
            yield Use(name, times)
    yield Use("out_proj.weight", queries)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))
