"""Arithmetic of a network under masks, and what training it costs.

Multiply-adds, not operations (1 multiply-add = 2 FLOPs). Counted is what touches the weights of Linear, convolutions,
recurrent layers and attention projections; embeddings are look-ups and cost none. Left out, as in the papers: biases,
norms, activations, pooling, attention's products of activations, the loss, sorting scores, drawing random numbers.

Costs of training: Evci et al., "Rigging the Lottery", arXiv 1911.11134, appendix H: the backward pass is two forward
passes, one for the gradient of the activations and one for that of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tombola.selection import dense_name, sparse_layers, unwrapped
from tombola.uses import LOOK_UPS, Rule, recurrent, rule_of


@dataclass(frozen=True)
class Layer:
    """One weight: its entries, those kept, and the multiply-adds of one forward pass, as it is and when dense."""

    weights: int
    kept: int
    multiply_adds: int
    dense: int


@dataclass(frozen=True)
class Count:
    """The arithmetic of one forward pass.

    Attributes:
        layers: parameter name -> :class:`Layer`, in the model's order; without layers that were not used.
        uncounted: parameters of two or more dimensions that no rule covers, for instance those of a module that
            multiplies with them itself. Their arithmetic is missing in the totals.
    """

    layers: Mapping[str, Layer]
    uncounted: tuple[str, ...]

    @property
    def total(self) -> int:
        """Multiply-adds under the masks."""
        return sum(layer.multiply_adds for layer in self.layers.values())

    @property
    def dense(self) -> int:
        """Multiply-adds without masks."""
        return sum(layer.dense for layer in self.layers.values())

    def table(self) -> str:
        """One line a layer: name, kept weights, multiply-adds, and their ratio to dense; a total at the end."""
        kept, weights = (sum(getattr(layer, key) for layer in self.layers.values()) for key in ("kept", "weights"))
        rows = {**self.layers, "total": Layer(weights, kept, self.total, self.dense)}
        width = max(map(len, rows))
        return "\n".join(
            f"{name:<{width}}  {row.kept:>12,} of {row.weights:>12,}  {row.multiply_adds:>16,}"
            f"  {row.multiply_adds / max(row.dense, 1):7.4f}"
            for name, row in rows.items()
        )


def count(model: nn.Module, example: Any, masks: Mapping[str, Tensor] | None = None) -> Count:
    """Count the multiply-adds of one forward pass of ``example``, by running it.

    Sparse layers count their connections, as the dense layers under the masks of these would, and by the names of
    those, ``….weight``; a model of ``tombola.sparse.convert`` by the names of the one that was converted.

    Args:
        model: any module. It runs once in ``eval`` mode, without gradients, and is then as it was.
        example: its input; a tuple is spread over several arguments. The whole batch counts, so pass a batch of one for
            numbers per sample.
        masks: parameter name -> bool tensor; weights without a mask count as dense, and those of sparse layers as what
            is there, with or without one.

    Raises:
        ValueError: a mask names a parameter that the model does not have, or has another shape.
    """
    plain = _running(model)
    shapes, names, there = _named(plain)
    masks = masks or {}
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(f"flops.count: the model has no parameter {name!r}; it has {', '.join(shapes)}")
        if shapes[name] != mask.shape:
            both = f"{tuple(mask.shape)}, the parameter {tuple(shapes[name])}"
            raise ValueError(f"flops.count: the mask of {name!r} has shape {both}")
    covered: set[str] = set()
    dense: dict[str, int] = {}
    sparse: dict[str, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, *, rule: Rule) -> None:
        for use in rule(module, args, kwargs, output):
            parameter = module.get_parameter(use.parameter)
            name = names[id(parameter)]
            if name in there:
                entries, kept = shapes[name].numel(), there[name]
            else:
                entries = parameter[use.rows].numel()
                kept = int(masks[name][use.rows].sum()) if name in masks else entries
            dense[name] = dense.get(name, 0) + use.times * entries
            sparse[name] = sparse.get(name, 0) + use.times * kept

    hooks = []
    for module in plain.modules():
        rule = rule_of(module)
        if rule is None and not isinstance(module, LOOK_UPS):
            continue
        covered |= {names[id(parameter)] for parameter in module.parameters(recurse=rule is recurrent)}
        if rule is not None:
            hooks.append(module.register_forward_hook(partial(note, rule=rule), with_kwargs=True))
    try:
        with _evaluating(plain), torch.no_grad():
            plain(*example) if type(example) is tuple else plain(example)  # a PackedSequence is one too
    finally:
        for hook in hooks:
            hook.remove()
    layers = {}
    for name, shape in shapes.items():
        if name in dense:
            kept = there[name] if name in there else int(masks[name].sum()) if name in masks else shape.numel()
            layers[name] = Layer(shape.numel(), kept, sparse[name], dense[name])
    uncounted = tuple(name for name, shape in shapes.items() if len(shape) > 1 and name not in covered)
    return Count(layers, uncounted)


def _running(model: nn.Module) -> nn.Module:
    """What runs, with plain names: the model without wrappers, or the net of a converted one."""
    from tombola.sparse.convert import Converted  # not above: files of tombola.sparse stand on this one

    plain = unwrapped(model)
    return plain.net if isinstance(plain, Converted) else plain


def _named(model: nn.Module) -> tuple[dict[str, torch.Size], dict[int, str], dict[str, int]]:
    """Name -> shape of each parameter, its identity -> name, and the name of each sparse layer's weight -> connections.

    A sparse layer's weight has the name and the shape of the dense layer's.
    """
    layers = sparse_layers(model)
    shapes, names, there = dict[str, torch.Size](), dict[int, str](), dict[str, int]()
    for name, parameter in model.named_parameters():
        layer, _ = layers.get(id(parameter), (None, None))
        if layer is not None:
            name = dense_name(layer, name)
            there[name] = parameter.numel()
        shapes[name] = parameter.shape if layer is None else layer.shape
        names[id(parameter)] = name
    return shapes, names, there


def size_in_bytes(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Bytes of a sparse network as a ticket stores it: kept values, one bit per masked weight, and all else dense."""
    total = 0
    for name, parameter in unwrapped(model).named_parameters():
        mask = masks.get(name)
        entries = parameter.numel() if mask is None else int(mask.sum())
        total += entries * parameter.element_size() + (0 if mask is None else math.ceil(mask.numel() / 8))
    return total + sum(buffer.numel() * buffer.element_size() for buffer in unwrapped(model).buffers())


# ---- what training costs, in multiply-adds per sample


def static_cost(sparse: float) -> float:
    """Training without ever a dense gradient (static, SNIP, SET, a ticket; or dense, with its own count): 3 f_S.

    Args:
        sparse: multiply-adds of a forward pass under the masks.
    """
    return 3 * sparse


def snfs_cost(sparse: float, dense: float) -> float:
    """Training with a dense gradient of the weights at each step (SNFS): 2 f_S + f_D."""
    return 2 * sparse + dense


def rigl_cost(sparse: float, dense: float, *, every: int) -> float:
    """Training with a dense gradient before each move, one in ``every`` steps: (3 f_S·ΔT + 2 f_S + f_D)/(ΔT + 1)."""
    return (static_cost(sparse) * every + snfs_cost(sparse, dense)) / (every + 1)


def average_cost(sparse_at: Callable[[int], float], *, steps: int) -> float:
    """Training while the masks thin out (gradual pruning): the mean over all steps of 3 f_S(t).

    Args:
        sparse_at: step -> multiply-adds of a forward pass under the masks of that step.
        steps: steps of the whole training.
    """
    return sum(static_cost(sparse_at(step)) for step in range(steps)) / steps


def break_even(dense_training: float, sparse_training: float) -> float:
    """How many times slower a device may do each multiply-add of sparse training than of dense, and still win.

    Both are the arithmetic of a whole training that reaches the same accuracy: multiply-adds per sample times the
    samples seen (a training of five times the epochs counts five times). Below 1: dense wins on any device.

    Raises:
        ValueError: a cost is not positive.
    """
    if not (dense_training > 0 and sparse_training > 0):
        raise ValueError(f"break_even: both costs must be positive, not {dense_training} and {sparse_training}")
    return dense_training / sparse_training


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and no fused path of transformers that would bypass the modules' calls."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():
            module.training = mode
