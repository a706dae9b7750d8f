"""Learning a score beside each weight: the chain rule before the optimiser's step, effective weights after it.
Part of ``attach``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from tombola.masks import Masks
from tombola.methods.protocol import Moment, SoftMethod
from tombola.scaling import undo_loss_scale
from tombola.states import check_generator, check_keys, check_optimizer, check_tensors

# what a score's parameter group does not take over from its weight's
_OWN = {"params", "weight_decay", "fused", "foreach"}
# the optimisers whose fused form runs on CPU and CUDA alike; Adagrad's, for one, was long for the CPU alone
FUSED = (SGD, Adam, AdamW)


@dataclass(eq=False)
class Slot:
    """One masked parameter: the raw weight w, its score s, and the multiplier m that the effective weight has now."""

    name: str
    parameter: Parameter
    weight: Tensor
    score: Parameter
    mask: Tensor


class SoftState:
    """Raw weights and scores of the masked parameters, which themselves hold the effective weights w·m."""

    def __init__(
        self, parameters: Mapping[str, Parameter], optimizer: Optimizer, method: SoftMethod, generator: torch.Generator
    ) -> None:
        self.optimizer = optimizer
        self.method = method
        self.generator = generator
        self.slots = [_slot(name, parameter, method) for name, parameter in parameters.items()]
        self.score_optimizer, self._followed = _score_optimizer(self.slots, optimizer, method)
        self._drawn_from = generator.get_state()
        # working memory for one layer at a time: allocating it anew in each step costs more than the arithmetic
        self._scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        for score in sorted((slot.score for slot in self.slots), key=torch.numel):
            self._scratch[score.dtype, score.device] = torch.empty_like(score, requires_grad=False).flatten()

    @property
    def scores(self) -> dict[str, Tensor]:
        """Parameter name -> score, no copy."""
        return {slot.name: slot.score.detach() for slot in self.slots}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> raw weight, no copy."""
        return {slot.name: slot.weight for slot in self.slots}

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """Gradients of the effective weights become those of w and s; the parameters hold w for the optimiser."""
        undo_loss_scale(self.optimizer)
        for slot in self.slots:
            grad = slot.parameter.grad
            towards = torch.zeros_like(slot.weight) if grad is None else grad
            scratch = self._scratch[slot.score.dtype, slot.score.device][: slot.score.numel()]
            scratch = scratch.as_strided(slot.score.shape, slot.score.stride())
            slot.score.grad = self.method.pull_back(
                towards, slot.weight, slot.score, slot.mask, moment, scratch=scratch
            )
            if self.method.train_weights:
                slot.parameter.copy_(slot.weight)
            else:
                slot.parameter.grad = None  # every optimiser passes over a parameter without gradient
        # by position: load_state_dict() gives an optimiser new group dictionaries
        for mine, index in zip(self.score_optimizer.param_groups, self._followed, strict=False):
            theirs = self.optimizer.param_groups[index]
            mine.update({key: value for key, value in theirs.items() if key not in _OWN})

    def before_skipped_step(self) -> None:
        """Weights that do not train have no gradient in any step: fused optimisers would begin a state for them."""
        if not self.method.train_weights:
            for slot in self.slots:
                slot.parameter.grad = None

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Take the updated w, step the scores, and write the new effective weights."""
        if self.method.train_weights:
            for slot in self.slots:
                slot.weight.copy_(slot.parameter)
        self.score_optimizer.step()
        self.method.adjust(self.scores, moment)
        self.write(moment)

    @torch.no_grad()
    def write(self, moment: Moment) -> None:
        """Draw or compute the masks of ``moment`` and write the effective weights into the parameters."""
        self._drawn_from = self.generator.get_state()
        for slot in self.slots:
            self.method.mask(slot.score, moment, generator=self.generator, out=slot.mask)
        self.write_effective()

    @torch.no_grad()
    def write_effective(self) -> None:
        """Write the effective weights w·m into the parameters."""
        for slot in self.slots:
            torch.mul(slot.weight, slot.mask, out=slot.parameter)

    @torch.no_grad()
    def write_hard(self, masks: Masks) -> None:
        """Write the surviving weights, at the scale they have once the mask is hard, into the parameters."""
        for slot in self.slots:
            torch.mul(slot.weight, self.method.surviving_scale(), out=slot.parameter)
            slot.parameter.masked_fill_(~masks[slot.name], 0)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain data."""
        return {
            "weights": {name: weight.clone() for name, weight in self.weights.items()},
            "scores": {name: score.clone() for name, score in self.scores.items()},
            "score_optimizer": copy.deepcopy(self.score_optimizer.state_dict()),  # it refers to the live tensors
            "generator": self._drawn_from,
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError, naming what is wrong, unless :meth:`load_state_dict` can take ``state``."""
        check_keys(state, ("weights", "scores", "score_optimizer", "generator"), "an attachment")
        check_tensors("weights", state["weights"], self.weights)
        check_tensors("scores", state["scores"], self.scores, infinite=True)
        check_optimizer("score_optimizer", state["score_optimizer"], self.score_optimizer)
        check_generator("generator", state["generator"], self.generator)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], moment: Moment) -> None:
        """The inverse of :meth:`state_dict`; also writes the effective weights of ``moment``."""
        for slot in self.slots:
            slot.weight.copy_(state["weights"][slot.name])
            slot.score.copy_(state["scores"][slot.name])
        saved = copy.deepcopy(state["score_optimizer"])  # it would keep the tensors
        for group, mine in zip(saved["param_groups"], self.score_optimizer.param_groups, strict=True):
            group.update({key: value for key, value in mine.items() if key not in group})  # of a newer torch
        self.score_optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.write(moment)


def _slot(name: str, parameter: Parameter, method: SoftMethod) -> Slot:
    weight = parameter.detach().clone(memory_format=torch.preserve_format)
    score = Parameter(method.scores(weight))
    return Slot(name, parameter, weight, score, torch.empty_like(score, requires_grad=False))


def _score_optimizer(slots: list[Slot], optimizer: Optimizer, method: SoftMethod) -> tuple[Optimizer, list[int]]:
    """The scores' optimiser, and for each of its groups the index of the user's group that it follows (none: [])."""
    by_group, followed = [], []
    for index, group in enumerate(optimizer.param_groups):
        members = {id(parameter) for parameter in group["params"]}
        scores = [slot.score for slot in slots if id(slot.parameter) in members]
        if scores:
            by_group.append((group, scores))
            followed.append(index)
    if method.score_optimizer is not None:
        own = method.score_optimizer([{"params": scores} for _, scores in by_group])
        if not isinstance(own, Optimizer):
            raise TypeError(
                f"score_optimizer made {type(own).__name__}, not a torch optimiser; "
                "pass for instance functools.partial(torch.optim.SGD, lr=0.1)"
            )
        return own, []
    accepted = inspect.signature(type(optimizer).__init__).parameters
    defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted and key not in _OWN}
    fusible = isinstance(optimizer, FUSED) and {slot.score.device.type for slot in slots} <= {"cpu", "cuda"}
    if fusible and "fused" in accepted and not defaults.get("differentiable"):
        defaults["fused"] = True
    groups = [
        {key: value for key, value in group.items() if key not in _OWN} | {"params": scores, "weight_decay": 0.0}
        for group, scores in by_group
    ]
    try:
        sibling = type(optimizer)(groups, **defaults)
    except Exception as error:  # whatever the class of the user's optimiser makes of its arguments
        raise TypeError(
            f"cannot make a second {type(optimizer).__name__} for the scores ({error}); give the method its own, "
            "for instance score_optimizer=functools.partial(torch.optim.SGD, lr=0.1)"
        ) from error
    return sibling, followed
