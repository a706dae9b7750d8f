"""Which parameters of a model get a mask, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from torch.nn.parameter import Parameter, UninitializedParameter

if TYPE_CHECKING:
    from tombola.sparse import SparseLayer

Select: TypeAlias = Iterable[str] | Callable[[str, Parameter], bool] | type[nn.Module] | Iterable[type[nn.Module]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """``model``, and what is inside of ``torch.compile``, DataParallel, DistributedDataParallel, Lightning Fabric and
    ``tombola.sparse.convert``, down to the user's own module.

    Raises:
        TypeError: it is no module at all.
    """
    from tombola.sparse.convert import Converted  # not above: files of tombola.sparse may stand on this one

    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    inner: object = model
    while isinstance(inner, nn.Module):
        yield inner
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        elif isinstance(inner, Converted):
            inner = inner.net
        else:
            compiled = getattr(inner, "_orig_mod", None)
            inner = getattr(inner, "_forward_module", None) if compiled is None else compiled


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module, inside whatever wrappers.

    Its parameter names are the plain ones, so masks and tickets fit with and without a wrapper.

    Raises:
        TypeError: it is no module at all.
    """
    return list(wrappers(model))[-1]


class Maskable(dict[str, Parameter]):
    """Parameter name -> parameter that gets a mask.

    Attributes:
        others: name of each other parameter -> why it gets none.
        sparse: those of the names that stand for the connections of a sparse layer -> that layer. Such a name is the
            one of the dense layer's weight, ``….weight`` or ``….weight_ih_l0``; the parameter are its values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.others: dict[str, str] = {}
        self.sparse: dict[str, SparseLayer] = {}


def maskable(model: nn.Module, select: Select | None = None) -> Maskable:
    """The parameters of ``model`` that a sparse method masks, by their names in ``model.named_parameters()``.

    By default every weight of Linear, Conv1d/2d/3d, transposed convolutions, RNN/LSTM/GRU (and their cells) and the
    projections of MultiheadAttention; never biases, norms or embeddings, nor frozen parameters. A tied weight counts
    once, under its first name; one that is also an embedding is left dense.

    In a model with sparse layers (:class:`~tombola.sparse.SparseLayer`) the default is those layers alone: what is
    still dense there was left so on purpose. Names and types can add dense weights, a predicate chooses among both; a
    sparse layer goes by the name that its weight has in the dense layer, ``….weight``.

    ``select`` replaces the default: parameter names; a predicate ``(name, parameter) -> bool`` that thins the default
    choice out; or module types (as for ``isinstance``), whose parameters of two or more dimensions are all taken.

    Raises:
        ValueError: a name that the model does not have or that cannot be masked, or nothing is left to mask.
    """
    names, predicate, types = _understood(select)
    model = unwrapped(model)
    kinds, layers = _kinds(model, types), sparse_layers(model)
    found = Maskable()
    for name, parameter in model.named_parameters():
        layer, owner = layers.get(id(parameter), (None, None))
        if layer is not None:
            name = dense_name(layer, name)
            kinds[id(parameter)] = ("the values of a sparse layer", types is None or isinstance(owner, types))
        reason = _unfit(parameter)
        if names is not None:
            if reason and name in names:
                raise ValueError(f"select: {name!r} cannot be masked: {reason}")
            reason = None if name in names else "not selected"
        elif reason is None:
            kind, masked = kinds[id(parameter)]
            reason = None if masked else kind
            if masked and predicate is not None and not predicate(name, parameter):
                reason = "not selected"
            if masked and select is None and layers and layer is None:
                reason = "dense beside sparse layers; select=… can name it"
        if reason is None:
            found[name] = parameter
            if layer is not None:
                found.sparse[name] = layer
        else:
            found.others[name] = reason
    if missing := [name for name in names or () if name not in found]:
        has = ", ".join([*found, *found.others])
        raise ValueError(f"select: the model has no parameter {missing[0]!r}; it has {has}")
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.others.items()) or "it has no parameters"
        raise ValueError(f"nothing to mask in {type(model).__name__} ({reasons}); choose parameters with select=…")
    return found


_Types: TypeAlias = tuple[type[nn.Module], ...]


def _understood(
    select: Select | None,
) -> tuple[list[str] | None, Callable[[str, Parameter], bool] | None, _Types | None]:
    """``select`` as exactly one of names, predicate and module types; three times None for the default."""
    if select is None:
        return None, None, None
    if isinstance(select, type):
        return None, None, (select,)
    if callable(select) and not isinstance(select, nn.Module):
        return None, select, None
    entries: list[object] = [select] if isinstance(select, str) or not isinstance(select, Iterable) else list(select)
    if all(isinstance(entry, str) for entry in entries):
        return entries, None, None  # type: ignore[return-value]
    if all(isinstance(entry, type) and issubclass(entry, nn.Module) for entry in entries):
        return None, None, tuple(entries)  # type: ignore[arg-type]
    raise ValueError("select: pass parameter names, module types, or a predicate (name, parameter) -> bool")


def _unfit(parameter: Parameter) -> str | None:
    if isinstance(parameter, UninitializedParameter):
        return "not initialised yet: run one forward pass of the lazy module first"
    if not parameter.is_floating_point():
        return f"{parameter.dtype} is not a floating point type"
    if not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    return None


def sparse_layers(model: nn.Module) -> dict[int, tuple[SparseLayer, nn.Module]]:
    """Identity of the values -> sparse layer, and the layer of the model that it is, or whose weight it is."""
    from tombola.sparse.gru import SparseWeight  # not above: files of tombola.sparse may stand on this one
    from tombola.sparse.layer import SparseLayer

    return {
        id(layer.values): (layer, module)
        for module in model.modules()
        for layer in (module, *module.children())
        if isinstance(layer, SparseLayer) and (layer is module) is not isinstance(layer, SparseWeight)
    }


def dense_name(layer: SparseLayer, values: str) -> str:
    """What the layer's weight would be called if it were dense: that of its values is ``values``."""
    return layer.dense_name(values.removesuffix("values").removesuffix("."))


def _kinds(model: nn.Module, types: _Types | None) -> dict[int, tuple[str, bool]]:
    """Identity of each parameter -> (what it is, whether it gets a mask)."""
    kinds: dict[int, tuple[str, bool]] = {}
    embedded: set[int] = set()
    for module in model.modules():
        for local, parameter in module.named_parameters(recurse=False):
            kind, masked = _kind(module, local, parameter, types)
            kinds[id(parameter)] = (kind, masked or kinds.get(id(parameter), ("", False))[1])
            if isinstance(module, _EMBEDDINGS) and types is None:
                embedded.add(id(parameter))
    return kinds | dict.fromkeys(embedded, ("an embedding, or tied to one", False))


def _kind(module: nn.Module, local: str, parameter: Parameter, types: _Types | None) -> tuple[str, bool]:
    if "bias" in local:
        return "a bias", False
    if isinstance(parameter, UninitializedParameter):
        return "not initialised yet", True
    if parameter.ndim < 2:
        return f"one-dimensional ({type(module).__name__})", False
    if types is not None:
        return f"a parameter of {type(module).__name__}, not of a selected type", isinstance(module, types)
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return "a layer weight", local == "weight"
    if isinstance(module, _RECURRENT):
        return "a recurrent weight", local.startswith("weight")
    if isinstance(module, nn.MultiheadAttention):
        return "an attention parameter", local.endswith("proj_weight")
    return f"a parameter of {type(module).__name__}, which is not masked by default", False
