"""A training loop as users write it, the optimisers it runs with, and bitwise comparison of states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from zoo import Net

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]

_decay = {"weight_decay": 0.02}
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": partial(SGD, lr=0.2, foreach=False),
    "momentum": partial(SGD, lr=0.05, momentum=0.9, **_decay),
    "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, **_decay),
    "sgd foreach": partial(SGD, lr=0.05, momentum=0.9, foreach=True, **_decay),
    "sgd fused": partial(SGD, lr=0.05, momentum=0.9, fused=True, **_decay),
    "adam": partial(Adam, lr=0.02, amsgrad=True, **_decay),
    "adam foreach": partial(Adam, lr=0.02, foreach=True, **_decay),
    "adam fused": partial(Adam, lr=0.02, fused=True, **_decay),
    "adamw": partial(AdamW, lr=0.02, weight_decay=0.1),
    "adamw foreach": partial(AdamW, lr=0.02, foreach=True, weight_decay=0.1),
    "adamw fused": partial(AdamW, lr=0.02, fused=True, weight_decay=0.1),
    "nadam": partial(NAdam, lr=0.02, **_decay),
    "rmsprop": partial(RMSprop, lr=0.01, momentum=0.5, centered=True, **_decay),
    "adagrad": partial(Adagrad, lr=0.05, **_decay),
}


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """The loss of a model on the inputs of one batch."""
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    return error(model(x), x)


def error(outputs: Tensor, x: Tensor) -> Tensor:
    """A mean over the samples, so that the loss of a batch is the mean of those of its equal parts."""
    wanted = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1).sum(1, keepdim=True).sin()
    return (outputs.flatten(1) - wanted).square().mean()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    net: Net,
    steps: Iterable[int],
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    parts: int = 1,
    after_backward: Callable[[], object] | None = None,
) -> None:
    """Steps of training on the batches of these numbers, each batch in ``parts`` that accumulate."""
    for step in steps:
        optimizer.zero_grad()
        for x in net.batch(step).chunk(parts):
            (loss_of(model, x) / parts).backward()  # type: ignore[no-untyped-call]
        if after_backward is not None:
            after_backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def differ(one: Any, other: Any, at: str = "") -> str:
    """Where two nested states differ, tensors bit by bit (so that −0.0 differs from 0.0); "" if nowhere."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
        return "" if alike else f"{at}: {one} is not {other}"
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{at}: {list(one)} are not {list(other)}"
        return next((found for key in one if (found := differ(one[key], other[key], f"{at}/{key}"))), "")
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return differ(dict(enumerate(one)), dict(enumerate(other)), at)
    return "" if type(one) is type(other) and one == other else f"{at}: {one!r} is not {other!r}"


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal bit by bit."""
    return not differ(one, other)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def copied(state: Any) -> Any:
    """A deep copy of a nested state."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [copied(value) for value in state]
    return state


def hooks_of(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """What is hooked into a model and its optimiser; empty for plain ones."""
    found = [name for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks") if getattr(optimizer, name)]
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None) or parameter._backward_hooks:
            found.append(name)
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks):
            found.append(f"module {name!r}")
    return found
