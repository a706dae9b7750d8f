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
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from tombola import sigmoid
from tombola.gradients import gradient_of, not_finite
from tombola.masks import Masks
from tombola.methods.protocol import Moment, SoftMethod
from tombola.scaling import undo_loss_scale
from tombola.sharded import is_sharded, like, local, part_of, placed, rows, whole
from tombola.sigmoid import Sigmoid
from tombola.states import HOW, check_generator, check_keys, check_optimizer, check_tensors

# what a score's parameter group does not take over from its weight's
_OWN = {"params", "weight_decay", "fused", "foreach"}
# the optimisers whose fused form runs on CPU and CUDA alike; Adagrad's, for one, was long for the CPU alone
FUSED = (SGD, Adam, AdamW)
# those that know a parameter by itself alone, so that it may have other memory while they step; some optimisers of
# others keep views of it
_MEMORYLESS = (SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop)


@dataclass(eq=False)
class Slot:
    """One masked parameter: the raw weight w, its score s, and the multiplier m that the effective weight has now.

    Weight and score of a sharded parameter are sharded like it; of m there is this rank's part. ``swift``: if m is a
    sigmoid, it is computed where it is needed, and ``mask`` is working memory. ``own``: the parameter's own memory,
    while it has that of the raw weight, for the optimiser's step.
    """

    name: str
    parameter: Parameter
    weight: Tensor
    score: Parameter
    mask: Tensor
    swift: bool
    own: Tensor | None = None

    def lend(self) -> None:
        """Give the parameter the memory of the raw weight, which an optimiser then updates without a copy."""
        if self.own is None:
            self.own, self.parameter.data = self.parameter.data, self.weight

    def take_back(self) -> bool:
        """Give the parameter its own memory again, if it does not have it."""
        if self.own is None:
            return False
        self.parameter.data, self.own = self.own, None
        return True


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
        plain = all(type(parameter.data) is Tensor for parameter in parameters.values())
        self._lends = plain and type(optimizer) in _MEMORYLESS
        self._drawn_from = generator.get_state()
        self._looked_at = set[str]()
        # working memory for one layer at a time: allocating it anew in each step costs more than the arithmetic
        self._scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def scores(self) -> dict[str, Tensor]:
        """Parameter name -> score, no copy."""
        return {slot.name: slot.score.detach() for slot in self.slots}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> raw weight, no copy."""
        return {slot.name: slot.weight for slot in self.slots}

    def vouched_for(self, moment: Moment) -> set[str]:
        """Names of the parameters whose gradients :meth:`before_step` itself will look at, in the sweep over them."""
        curve = self.method.sigmoid(moment)
        self._looked_at = {slot.name for slot in self.slots if curve and slot.swift and _is_plain(slot)}
        return self._looked_at

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """Gradients of the effective weights become those of w and s; the parameters hold w for the optimiser.

        Raises:
            FloatingPointError: one of those that it looks at is not finite. No weight has changed.
        """
        undo_loss_scale(self.optimizer)
        curve, together = self.method.sigmoid(moment), list[Slot]()
        gradients = {slot.name: _gradient(slot) for slot in self.slots}
        for slot in self.slots:
            towards = gradients[slot.name]
            if slot.name in self._looked_at or (curve and slot.swift and sigmoid.alike(local(slot.weight), towards)):
                together.append(slot)
            else:
                self._pull_back(slot, towards, moment, curve)
        if curve:
            layers = [(gradients[s.name], local(s.weight), local(s.score), s.mask) for s in together]
            is_finite = sigmoid.pull_back(layers, curve)
            for slot, fine in zip(together, is_finite, strict=True):
                if not fine and slot.name in self._looked_at:
                    raise not_finite(gradient_of(slot.name), moment.step)
        for slot in self.slots:
            slot.score.grad = like(slot.mask, slot.score)
            if not self.method.train_weights:
                slot.parameter.grad = None  # every optimiser passes over a parameter without gradient
            elif self._lends:
                slot.lend()
            else:
                local(slot.parameter).copy_(local(slot.weight))
        # by position: load_state_dict() gives an optimiser new group dictionaries
        for mine, index in zip(self.score_optimizer.param_groups, self._followed, strict=False):
            theirs = self.optimizer.param_groups[index]
            mine.update({key: value for key, value in theirs.items() if key not in _OWN})

    def _pull_back(self, slot: Slot, grad: Tensor, moment: Moment, curve: Sigmoid | None) -> None:
        """``grad`` becomes the gradient of w, and the slot's mask that of the score."""
        weight, score = local(slot.weight), local(slot.score)
        if curve and slot.swift:
            self.method.mask(score, moment, generator=self.generator, out=slot.mask)
        pulled = self.method.pull_back(grad, weight, score, slot.mask, moment, scratch=self._working_memory(score))
        if pulled is not slot.mask:
            slot.mask.copy_(pulled)

    def _working_memory(self, score: Tensor) -> Tensor:
        """Of the shape and strides of a score; made when it is needed, as large as the largest that needed it."""
        kind = score.dtype, score.device
        if kind not in self._scratch or self._scratch[kind].numel() < score.numel():
            self._scratch[kind] = torch.empty_like(score, requires_grad=False).flatten()
        return self._scratch[kind].as_strided(score.shape, score.stride())

    def before_skipped_step(self) -> None:
        """Weights that do not train have no gradient in any step: fused optimisers would begin a state for them."""
        if not self.method.train_weights:
            for slot in self.slots:
                slot.parameter.grad = None

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Take the updated w, step the scores, and write the new effective weights."""
        self.score_optimizer.step()
        self.method.adjust(self.scores, moment)
        self.write(moment, take=self.method.train_weights)

    @torch.no_grad()
    def write(self, moment: Moment, *, take: bool = False) -> None:
        """Draw or compute the masks of ``moment`` and write the effective weights into the parameters.

        ``take``: of the w that the parameters hold.
        """
        self._drawn_from = self.generator.get_state()
        curve = self.method.sigmoid(moment)
        for slot in self.slots:
            if curve and slot.swift:
                continue
            if is_sharded(slot.score) and self.method.draws:
                self._draw(slot, moment)
            else:
                self.method.mask(local(slot.score), moment, generator=self.generator, out=slot.mask)
        self.write_effective(moment, take=take)

    def _draw(self, slot: Slot, moment: Moment) -> None:
        """Draw the masks of all ranks, as one process would, and keep this one's. Takes a whole layer's memory."""
        assert is_sharded(slot.score)
        everything = torch.zeros(slot.score.shape, dtype=slot.mask.dtype, device=slot.mask.device)
        begin, end = rows(slot.score)
        everything[begin:end] = local(slot.score)
        drawn = self.method.mask(everything, moment, generator=self.generator, out=torch.empty_like(everything))
        slot.mask.copy_(drawn[begin:end])

    @torch.no_grad()
    def write_effective(self, moment: Moment, *, take: bool = False) -> None:
        """Write the effective weights w·m into the parameters; ``take``: of the w that they hold."""
        curve, together = self.method.sigmoid(moment), []
        for slot in self.slots:
            lent, weight, parameter = slot.take_back(), local(slot.weight), local(slot.parameter)
            if take and not lent:
                weight.copy_(parameter)
            if curve and slot.swift:
                together.append((weight, local(slot.score), parameter))
            else:
                torch.mul(weight, slot.mask, out=parameter)
        if curve:
            sigmoid.apply(together, curve)

    @torch.no_grad()
    def write_hard(self, masks: Masks) -> None:
        """Write the surviving weights, at the scale they have once the mask is hard, into the parameters."""
        for slot in self.slots:
            slot.take_back()
            parameter = local(slot.parameter)
            torch.mul(local(slot.weight), self.method.surviving_scale(), out=parameter)
            parameter.masked_fill_(~local(masks[slot.name]), 0)

    def marks(self) -> dict[str, object]:
        """What all ranks must have alike, by what it is called."""
        marks: dict[str, object] = {score_of(name): local(score) for name, score in self.scores.items()}
        return marks | {"the state of the random generator": self.generator.get_state().cpu()}

    def parts(self) -> list[str]:
        """Those of the :meth:`marks` that are about a part that this rank has."""
        return [score_of(name) for name, score in self.scores.items() if is_sharded(score)]

    def state_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain data; with ``full`` nothing is sharded."""
        gathered = _whole if full else copy.deepcopy  # both copy, as the state refers to the live tensors
        return {
            "weights": gathered(self.weights),
            "scores": gathered(self.scores),
            "score_optimizer": gathered(self.score_optimizer.state_dict()),
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
            local(slot.weight).copy_(part_of(state["weights"][slot.name], slot.weight))
            local(slot.score).copy_(part_of(state["scores"][slot.name], slot.score))
        saved = copy.deepcopy(state["score_optimizer"])  # it would keep the tensors
        scores = [score for group in self.score_optimizer.param_groups for score in group["params"]]
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        for index, score in zip(indices, scores, strict=True):
            for key, entry in saved["state"].get(index, {}).items():
                if isinstance(entry, Tensor) and entry.shape == score.shape:
                    saved["state"][index][key] = placed(entry, score)
        for group, mine in zip(saved["param_groups"], self.score_optimizer.param_groups, strict=True):
            own = {key: value for key, value in mine.items() if key not in group or key in HOW}  # of a newer torch
            group.update(own)
        self.score_optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.write(moment)


def _gradient(slot: Slot) -> Tensor:
    """What this rank has of the gradient of the effective weight."""
    grad = slot.parameter.grad
    return torch.zeros_like(local(slot.weight)) if grad is None else local(grad)


def _is_plain(slot: Slot) -> bool:
    """Whether its gradient is all here, in the memory order of the weight."""
    grad = slot.parameter.grad
    return grad is not None and not is_sharded(grad) and not grad.is_sparse and sigmoid.alike(slot.weight, grad)


def _slot(name: str, parameter: Parameter, method: SoftMethod) -> Slot:
    weight = parameter.detach().clone(memory_format=torch.preserve_format)
    score = Parameter(method.scores(weight))
    mask = torch.empty_like(local(score), requires_grad=False)
    return Slot(name, parameter, weight, score, mask, sigmoid.able(*map(local, (weight, score, parameter)), mask))


def score_of(name: str) -> str:
    """What the score of this parameter is called in messages."""
    return f"the score of {name!r}"


def _whole(state: Any) -> Any:
    """A copy of a nested state in which nothing is sharded."""
    if isinstance(state, Tensor):
        return whole(state).detach().clone()
    if isinstance(state, Mapping):
        return {key: _whole(entry) for key, entry in state.items()}
    return [_whole(entry) for entry in state] if isinstance(state, list) else copy.deepcopy(state)


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
    # DTensor knows no fused SGD
    fusible = fusible and not (isinstance(optimizer, SGD) and any(is_sharded(slot.score) for slot in slots))
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
