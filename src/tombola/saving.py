"""The state of a method as what a checkpoint holds, and back. Part of ``attach``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tombola.dynamic import DynamicState
from tombola.hard import HardState
from tombola.masks import pack
from tombola.methods.protocol import HardMethod, Moment, SoftMethod
from tombola.rewire import SparseState
from tombola.sharded import is_sharded, whole
from tombola.soft import SoftState
from tombola.states import checked_outcome


def saved(state: HardState | SoftState, scores: Mapping[str, Tensor], *, full: bool) -> dict[str, Any]:
    """Tensors and plain data; with ``full`` nothing is sharded. ``scores`` are those that hard masks came from."""
    if isinstance(state, SoftState):
        return {"soft": state.state_dict(full=full)}
    if isinstance(state, SparseState):
        return state.state_dict()
    shapes = {name: list(parameter.shape) for name, parameter in state.parameters.items()}
    masks, scores = dict(state.masks), {name: score.detach().clone() for name, score in scores.items()}
    if full:
        masks, scores = ({name: whole(entry) for name, entry in part.items()} for part in (masks, scores))
    masks = {name: mask if is_sharded(mask) else pack(mask) for name, mask in masks.items()}
    hard = {"hard": {"masks": masks, "shapes": shapes, "scores": scores}}
    return hard | ({"dynamic": state.state_dict(full=full)} if isinstance(state, DynamicState) else {})


def restored(
    found: Mapping[str, Any],
    state: HardState | SoftState,
    method: HardMethod | SoftMethod,
    parameters: Mapping[str, Parameter],
    moment: Moment,
) -> tuple[HardState | SoftState, dict[str, Tensor]]:
    """The state that goes on from what :func:`saved` found at ``moment``, and the scores that hard masks came from.

    It is ``state`` with other content, or, if the mask has hardened meanwhile, a new one.

    Raises:
        ValueError: it is of other parameters, or damaged. Nothing has changed then.
    """
    if "soft" in found:
        if isinstance(state, HardState):
            raise ValueError("the state is from before the mask hardened; load it into a fresh attachment")
        state.check(found["soft"])
        state.load_state_dict(found["soft"], moment)
        return state, {}
    if isinstance(state, SparseState):
        state.check(found)
        state.load_state_dict(found)
        state.prepare(moment)
        return state, {}
    masks, scores = checked_outcome(found["hard"], method, parameters)
    if isinstance(state, DynamicState):
        state.check(found.get("dynamic"))
    hard = HardState(parameters, state.optimizer) if isinstance(state, SoftState) else state
    hard.hold(masks)
    if isinstance(hard, DynamicState):
        hard.load_state_dict(found["dynamic"])
        hard.prepare(moment)
    return hard, scores
