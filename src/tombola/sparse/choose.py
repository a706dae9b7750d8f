"""Which layers of a model to make sparse: each timed both ways on this machine, and the fastest path through them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tombola.sparse.around import ABLE, LOW, make_aware
from tombola.sparse.layout import inside, outside
from tombola.sparse.swap import SPARSE, sparse
from tombola.sparse.timing import milliseconds

Choice = Literal["dense", "bf16", "sparse"]


class Times(NamedTuple):
    """Milliseconds of one layer. ``bf16`` is None if that is not allowed."""

    dense: float
    bf16: float | None
    sparse: float


@dataclass(frozen=True)
class Call:
    """One call of a module: its name, the shape of its input, and whether the input's gradient is wanted."""

    name: str
    module: nn.Module
    shape: torch.Size
    gradient: bool


def fastest(
    model: nn.Module, inputs: tuple[Any, ...], masks: Mapping[str, Mapping[str, Tensor]], *, bf16: bool
) -> tuple[dict[str, Times], dict[str, Choice]]:
    """Times of the layers and what to make of them.

    Args:
        model: in the mode to be timed.
        inputs: its arguments.
        masks: layer name -> name of its weight -> bool tensor, for each layer that could be sparse.
        bf16: whether dense layers may multiply in bfloat16.
    """
    found = calls(model, inputs)
    known: dict[Any, Any] = {}
    times: dict[str, Times] = {}
    ways: list[tuple[_Way, _Way]] = []  # with the batch outermost, and innermost
    for call in found:
        given = masks.get(call.name)
        densities = None if given is None else tuple(round(float(mask.float().mean()), 3) for mask in given.values())
        key = (repr(call.module), call.shape, call.gradient, densities)  # the like of it takes as long
        if key not in known:
            known[key] = _between(call) if given is None else layer_times(call, given, bf16=bf16)
        if given is None:
            usual, innermost = known[key]
            ways.append(((usual, "dense"), (innermost, "dense")))
        else:
            times[call.name] = known[key]
            ways.append(_ways(call, known[key]))
    turns = [0.0 if call.shape[0] < 2 else _turn(call.shape) * (2 if model.training else 1) for call in found]
    path = _path([(usual[0], innermost[0]) for usual, innermost in ways], turns)
    chosen: dict[str, Choice] = dict.fromkeys(masks, "dense")
    for call, way, layout in reversed(list(zip(found, ways, path, strict=True))):  # the first call of a layer decides
        if call.name in masks:
            chosen[call.name] = way[layout][1]
    return times, chosen


_Way = tuple[float, Choice]


def _ways(call: Call, times: Times) -> tuple[_Way, _Way]:
    """The best that a layer can do in each layout."""
    usual: _Way = (times.dense, "dense")
    if times.bf16 is not None:
        usual = min(usual, (times.bf16, "bf16"))
    innermost: _Way = (times.sparse, "sparse")
    if isinstance(call.module, nn.Linear) and len(call.shape) == 2:  # a product of matrices in both
        innermost = min(innermost, usual)
    return usual, innermost


def calls(model: nn.Module, inputs: tuple[Any, ...]) -> list[Call]:
    """The calls of layers, norms and pools in the order in which they happen, by running a copy of the model."""
    found: list[Call] = []
    model = copy.deepcopy(model)

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(args[0], Tensor):  # and no packed sequence
                found.append(Call(name, module, args[0].shape, args[0].requires_grad))

        return hook

    layers = [(name, module) for name, module in model.named_modules() if type(module) in {*ABLE, *SPARSE}]
    hooks = [module.register_forward_hook(note(name)) for name, module in layers]
    with torch.set_grad_enabled(model.training):
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _path(costs: list[tuple[float, float]], turns: list[float]) -> list[bool]:
    """For each call whether it is to run with the batch innermost, so that all of them and the turns cost least."""
    best = (0.0, float("inf"))  # the input comes with the batch outermost
    came_from: list[tuple[int, int]] = []
    for cost, turn in zip(costs, turns, strict=True):
        ways = [[best[0], best[1] + turn], [best[0] + turn, best[1]]]
        froms = tuple(min((0, 1), key=way.__getitem__) for way in ways)
        best = (ways[0][froms[0]] + cost[0], ways[1][froms[1]] + cost[1])
        came_from.append((froms[0], froms[1]))
    layout = 0 if best[0] <= best[1] else 1
    path = []
    for froms in reversed(came_from):
        path.append(bool(layout))
        layout = froms[layout]
    return path[::-1]


def layer_times(call: Call, masks: Mapping[str, Tensor], *, bf16: bool) -> Times:
    """The times of one layer, ``masks`` by the names of its weights; dense in the better of PyTorch's layouts."""
    dense: Any = call.module
    runs = {"dense": passes(dense, call)}
    if isinstance(dense, nn.Conv2d):
        last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs["last"] = passes(last, call, torch.channels_last)
    if bf16 and isinstance(dense, LOW):
        low = copy.deepcopy(dense)
        make_aware(low, low_precision=True)
        runs["bf16"] = passes(low, call)
    runs["sparse"] = passes(sparse(dense, masks), call, innermost=True)
    found = milliseconds(runs)
    return Times(min(found["dense"], found.get("last", float("inf"))), found.get("bf16"), found["sparse"])


def _between(call: Call) -> tuple[float, float]:
    aware = copy.deepcopy(call.module)
    make_aware(aware)
    found = milliseconds({"usual": passes(call.module, call), "innermost": passes(aware, call, innermost=True)})
    return found["usual"], found["innermost"]


def passes(
    module: nn.Module, call: Call, form: torch.memory_format = torch.contiguous_format, *, innermost: bool = False
) -> Callable[[], object]:
    """One pass of a module over random numbers, and the way back if it is training."""
    x = torch.randn(call.shape).contiguous(memory_format=form)
    if innermost:
        x = outside(inside(x).clone())
    if not module.training:
        return lambda: _without_gradients(module, (x,))
    x.requires_grad_(call.gradient)
    wanted = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    if not wanted:
        return lambda: module(x)
    above = torch.ones_like(_first(module(x)))
    return lambda: torch.autograd.grad(_first(module(x)), wanted, above)


def _first(output: Any) -> Tensor:
    """What a layer hands on; a recurrent one has its last states beside it."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def whole(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """One pass of a whole model, and the way back if it is training."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not model.training or not wanted:
        return lambda: _without_gradients(model, inputs)
    return lambda: torch.autograd.grad(_total(model(*inputs)), wanted, allow_unused=True)


@torch.no_grad()
def _without_gradients(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return model(*inputs)


def _total(output: Any) -> Tensor:
    """The sum of all tensors in it."""
    if isinstance(output, Tensor):
        return output.sum()
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return torch.stack([_total(part) for part in parts]).sum() if parts else torch.zeros(())


@cache
def _turn(shape: torch.Size) -> float:
    x = torch.randn(shape)
    return milliseconds({"turn": lambda: inside(x)})["turn"]
