"""``torch.compile`` of what a training computes, with CUDA graphs on CUDA: tried out and checked before it is used.

Compiled is the way from a batch to its loss, and with it the way back to the gradients of the parameters. Gathering the
gradients, the optimiser's step, and all hooks at either stay outside: masks that change are none of the compiled code's
business. It must only read weights and batch where they lie at each call, which is what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Inputs and labels of a batch to the loss."""
Backend: TypeAlias = str | Callable[..., Any]

TOLERANCE = 0.1  # of loss and gradients, relative; rounding makes for less even in bf16, a stale input for more
GRAPHS = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}  # else it would go on without, in silence
_CALLS = 3  # until a CUDA graph is replayed: a warm-up and the recording come before


def compiled(
    objective: Objective,
    model: nn.Module,
    *,
    batch_size: int,
    tell: Callable[[str], None],
    backend: Backend = "inductor",
) -> Objective:
    """``objective``, compiled when it is first called, or left as it is where that cannot be.

    Args:
        objective: depends on its arguments and on the parameters and buffers of ``model`` alone.
        model: in training mode when it is called.
        batch_size: of the batches that are worth it; on any other it is computed as it is, not compiled once more.
        tell: told why, if there is no compiled code, or none in CUDA graphs.
        backend: of ``torch.compile``.
    """
    chosen: list[Objective] = []

    def compiled_objective(x: Tensor, y: Tensor) -> Tensor:
        if len(x) != batch_size:
            return objective(x, y)
        if not chosen:
            chosen.append(_first_that_works(objective, model, (x, y), tell, backend))
        return chosen[0](x, y)

    return compiled_objective


def _first_that_works(
    objective: Objective, model: nn.Module, batch: tuple[Tensor, Tensor], tell: Callable[[str], None], backend: Backend
) -> Objective:
    attempts: list[tuple[str, dict[str, Any]]] = [("torch.compile", {})]
    if batch[0].device.type == "cuda":
        attempts.insert(0, ("CUDA graphs", {"options": GRAPHS}))
    for name, options in attempts:
        try:
            fast: Objective = torch.compile(objective, backend=backend, dynamic=False, **options)
            if _equal(fast, objective, model, *batch):
                return fast
            problem = "its loss or gradients are not those of the model as it is"
        except Exception as error:  # whatever a compiler fails with
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        torch.compiler.reset()
        tell(f"compile: trained without {name}: {problem}")
    return objective


def _equal(fast: Objective, objective: Objective, model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether ``fast`` does what ``objective`` does. Leaves the model and all random generators as they were.

    The last call is with other weights, inputs and labels than those before, written where these lay: if it saw old
    ones, its outcome would be another.
    """
    x, y, parameters = x.clone(), y.clone(), [p for p in model.parameters() if p.requires_grad]
    with _as_before(model):
        for _ in range(_CALLS):
            _outcome(fast, parameters, x, y)
        with torch.no_grad():
            x.copy_(x.flip(0))
            y.copy_(y.roll(1, 0))
            for parameter in parameters:  # not only scaled: norms would not notice
                parameter.copy_(0.9 * parameter.flatten().flip(0).view(parameter.shape))
        found = _outcome(fast, parameters, x, y)
        expected, again = (_outcome(objective, parameters, x, y) for _ in range(2))
    random = not _close(again, expected)  # dropout, say: compiled code draws other numbers
    return random or _close(found, expected)


def _outcome(objective: Objective, parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and all gradients in one vector. No gradient is gathered and no hook of a parameter runs."""
    loss = objective(x, y)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.detach().clone(), torch.cat([gradient.flatten().float() for gradient in gradients])


def _close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(
        float((one - other).norm()) <= TOLERANCE * float(other.norm())
        for one, other in zip(found, expected, strict=True)
    )


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside it to parameters, buffers and random generators is undone, in place."""
    tensors = [*model.parameters(), *model.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    cuda = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, saved, strict=True):
                    if not torch.equal(tensor, before):  # an expanded constant, say, cannot be written to
                        tensor.copy_(before)
