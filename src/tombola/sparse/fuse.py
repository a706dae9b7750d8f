"""Fewer passes over memory: a sum and a ReLU become part of the layer before them, for inference a batch norm too."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from tombola.sparse.around import _BatchNorm2d
from tombola.sparse.conv import SparseConv2d
from tombola.sparse.layer import SparseLayer

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_SUMS = (operator.add, operator.iadd, torch.add)


def fused(model: nn.Module) -> nn.Module:
    """``model`` with its ReLUs inside the sparse layers and batch norms that they follow, and shortcuts added there.

    In ``eval`` mode batch norms become part of the layers that they follow, too; such a model is for inference.
    The parameters keep their names. A model that :mod:`torch.fx` cannot trace, or whose code asks whether it is
    training, comes back as it is.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever the model's own code raises when it sees no real tensors
        return model
    for node in graph.nodes:
        node.type = None  # of annotations that are texts; with one of these the result could not be pickled
    if any("training" in node.kwargs for node in graph.nodes):  # F.dropout and the like: traced as a constant
        return model
    if not model.training:
        _fold_norms(model, graph)
    _absorb_sums(model, graph)
    _absorb_relus(model, graph)
    graph.lint()
    result = fx.GraphModule(model, graph)
    result.train(model.training)
    return result


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = type(module).__module__.startswith("tombola.sparse")
        return ours or super().is_leaf_module(module, name)


def _calls(graph: fx.Graph, model: nn.Module, kinds: Any) -> dict[nn.Module, list[fx.Node]]:
    """The modules of these classes -> the nodes that call them."""
    found: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(module := model.get_submodule(node.target), kinds):
            found.setdefault(module, []).append(node)
    return found


def _absorb_sums(model: nn.Module, graph: fx.Graph) -> None:
    """A convolution begins its sums with what is added to its output."""
    for nodes in _calls(graph, model, SparseConv2d).values():
        total = only_user(nodes[0]) if len(nodes) == 1 else None
        if total is None or total.target not in _SUMS or len(total.args) != 2 or total.kwargs:
            continue
        node, others = nodes[0], [term for term in total.args if term is not nodes[0]]
        if len(others) == 1 and isinstance(others[0], fx.Node) and _may_wait(node, total, model):
            with graph.inserting_before(total):
                both = graph.call_module(str(node.target), (*node.args, others[0]))
            _leave_out(graph, total, both)
            graph.erase_node(node)


def _may_wait(node: fx.Node, until: fx.Node, model: nn.Module) -> bool:
    """Whether nothing happens between the two that could change the node's input in place, or be as well the one."""
    between = node.next
    while between is not until:
        is_nothing = between.op == "call_module" and isinstance(model.get_submodule(str(between.target)), nn.Identity)
        if not is_nothing and between.op != "get_attr":
            return False
        between = between.next
    return True


def _absorb_relus(model: nn.Module, graph: fx.Graph) -> None:
    for module, nodes in _calls(graph, model, (SparseLayer, _BatchNorm2d)).items():
        followers = [only_user(node) for node in nodes]
        if all(follower is not None and is_relu(follower, model) for follower in followers):
            module.relu = True  # type: ignore[assignment]
            for node, follower in zip(nodes, followers, strict=True):
                _leave_out(graph, follower, node)


def _fold_norms(model: nn.Module, graph: fx.Graph) -> None:
    for layer, nodes in _calls(graph, model, (SparseLayer, nn.Conv2d)).items():
        follower = only_user(nodes[0]) if len(nodes) == 1 else None
        if follower is None or follower.op != "call_module":
            continue
        norm = model.get_submodule(str(follower.target))
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            _fold(layer, norm)
            _leave_out(graph, follower, nodes[0])


@torch.no_grad()
def _fold(layer: Any, norm: nn.BatchNorm2d) -> None:
    """The layer followed by the norm, as one layer."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    bias = (0 if layer.bias is None else layer.bias) - mean
    shift = bias * scale + (norm.bias if norm.affine else 0)
    if isinstance(layer, SparseLayer):
        rows = scale.repeat_interleave(layer.geometry.taps).repeat_interleave(layer.pointers.diff())
        layer.values = nn.Parameter(layer.values * rows, layer.values.requires_grad)
    else:
        layer.weight = nn.Parameter(layer.weight * scale.view(-1, 1, 1, 1), layer.weight.requires_grad)
    layer.bias = nn.Parameter(shift, norm.affine and norm.weight.requires_grad)


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone uses this one, if there is just one."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def is_relu(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node is a ReLU."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _leave_out(graph: fx.Graph, node: Any, source: fx.Node) -> None:
    node.replace_all_uses_with(source)
    graph.erase_node(node)
