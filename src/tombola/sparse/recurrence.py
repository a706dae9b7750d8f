"""The steps of a gated recurrent unit over sparse weights, and the way back through them.

As PyTorch has it, with the reset gate inside::

    r, z = σ(W_ir x + b_ir + W_hr h + b_hr), σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h

Everything is (steps, channels, batch): what a step reads and writes is one run of memory, the products with the inputs
and the gradients of the values are one call for all steps, and nothing is ever transposed. What one step leaves for the
next fits the cache, so the way back computes the derivatives of the gates step by step as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tombola.sparse import execution
from tombola.sparse.geometry import Geometry
from tombola.sparse.positions import Positions


class Weight(NamedTuple):
    """A sparse weight (3 · hidden, channels), its bias (3 · hidden,) or None, and where its values stand."""

    values: Tensor
    bias: Tensor | None
    positions: Positions
    geometry: Geometry


def recurrence(x: Tensor, start: Tensor, by_input: Weight, by_state: Weight) -> Tensor:
    """The states of one layer in one direction.

    Args:
        x: (T, channels, N), float32.
        start: (hidden, N), the state before the first step.
        by_input: W_i and b_i, the three gates one below the other.
        by_state: W_h and b_h.

    Returns:
        (T, hidden, N).
    """
    if torch.compiler.is_compiling():  # not as a decorator, which would load the compiler with this module
        return torch.compiler.disable(_recurrence)(x, start, by_input, by_state)  # type: ignore[no-any-return]
    return _recurrence(x, start, by_input, by_state)


def _recurrence(x: Tensor, start: Tensor, by_input: Weight, by_state: Weight) -> Tensor:
    x, start = x.contiguous(), start.contiguous()
    if torch.is_grad_enabled():
        tensors = (x, start, by_input.values, by_input.bias, by_state.values, by_state.bias)
        return _Recurrence.apply(*tensors, by_input, by_state)  # type: ignore[no-any-return, no-untyped-call]
    return _run(x, start, by_input, by_state, None)[1][1:]


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, *given: Any) -> Tensor:
        *_, by_input, by_state = given
        reset = x.new_empty(x.shape[0], *start.shape)
        gates, states = _run(x, start, by_input, by_state, reset)
        ctx.save_for_backward(x, by_input.values, by_state.values, gates, states, reset)
        ctx.by_input, ctx.by_state = by_input, by_state
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        saved = (tensor.contiguous() for tensor in ctx.saved_tensors)  # hooks may have moved them
        x, input_values, state_values, gates, states, reset = saved
        by_input, by_state = ctx.by_input, ctx.by_state
        at_input, at_state, by_start = _back(gradient.contiguous(), gates, states, reset, state_values, by_state)
        found: list[Tensor | None] = [None, by_start, None, None, None, None]
        for place, values, inputs, above, weight in (
            (2, input_values, x, at_input, by_input),
            (4, state_values, states[:-1], at_state, by_state),
        ):
            positions, geometry, size = weight.positions, weight.geometry, (x.shape[0], x.shape[2])
            if ctx.needs_input_grad[place]:
                found[place] = execution.value_gradient(above, inputs, size, positions.forth, geometry)
            if ctx.needs_input_grad[place + 1]:
                found[place + 1] = above.sum(0).sum(1)  # faster than both at once
            if place == 2 and ctx.needs_input_grad[0]:
                found[0] = by_x = torch.empty_like(x)
                execution.input_gradient(above, by_x, size, values, positions.back, geometry)
        return *found, None, None


def _run(x: Tensor, start: Tensor, by_input: Weight, by_state: Weight, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gates r, z and n of all steps, (T, 3 · hidden, N), and the states, (T + 1, hidden, N).

    ``reset``, (T, hidden, N), takes W_hn h + b_hn, what the reset gates are multiplied with.
    """
    gates = _product(x, by_input)
    hidden = start.shape[0]
    states = x.new_empty(x.shape[0] + 1, *start.shape)
    states[0] = start
    for step, (gate, state) in enumerate(zip(gates, states, strict=False)):
        from_state = _product(state, by_state)
        inner = from_state[2 * hidden :]
        if reset is not None:
            reset[step] = inner
        r, z, n = gate.view(3, hidden, -1)
        gate[: 2 * hidden].add_(from_state[: 2 * hidden]).sigmoid_()
        n.addcmul_(r, inner).tanh_()
        torch.lerp(n, state, z, out=states[step + 1])
    return gates, states


def _back(
    gradient: Tensor, gates: Tensor, states: Tensor, reset: Tensor, values: Tensor, by_state: Weight
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients where the two weights' products arrive, (T, 3 · hidden, N) each, and that of the first state."""
    at_input, at_state = torch.empty_like(gates), torch.empty_like(gates)
    hidden, back = states.shape[1], by_state.positions.back
    sigmoid_back, tanh_back = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    carried, size = torch.zeros_like(states[0]), (1, states.shape[2])
    for step in reversed(range(len(gates))):
        r, z, n = gates[step].view(3, hidden, -1)
        by_r, by_z, by_n = at_input[step].view(3, hidden, -1)
        above = carried.add_(gradient[step])
        straight = above * z
        tanh_back.grad_input(above - straight, n, grad_input=by_n)
        sigmoid_back.grad_input((states[step] - n).mul_(above), z, grad_input=by_z)
        sigmoid_back.grad_input(by_n * reset[step], r, grad_input=by_r)
        at_state[step, : 2 * hidden] = at_input[step, : 2 * hidden]
        torch.mul(by_n, r, out=at_state[step, 2 * hidden :])
        execution.input_gradient(at_state[step], carried, size, values, back, by_state.geometry)
        carried.add_(straight)
    return at_input, at_state, carried


def _product(x: Tensor, weight: Weight) -> Tensor:
    """(…, channels, N) -> (…, 3 · hidden, N), for all steps or one."""
    *steps, _, batch = x.shape
    result, size = x.new_empty(*steps, weight.geometry.outputs, batch), (*(steps or (1,)), batch)
    execution.product(x, result, size, weight.values, weight.bias, weight.positions.forth, weight.geometry)
    return result
