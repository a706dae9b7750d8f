"""attach(): run a sparse method on any model in any training loop, by hooks around ``optimizer.step()`` alone.

The model is never wrapped or renamed: each masked parameter always holds its effective weight, written in place. The
state of a method (masks, scores, raw weights) lives in the :class:`Attachment`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from tombola.beginning import begin
from tombola.checks import check_arguments, check_membership, check_sharding
from tombola.describe import describe
from tombola.dynamic import DynamicState
from tombola.gradients import LOOK, Gradients
from tombola.hard import HardState
from tombola.masks import Masks, check_same_layout
from tombola.methods.protocol import HardMethod, Moment, SoftMethod
from tombola.ranks import Ranks, bare
from tombola.saving import restored, saved
from tombola.selection import Select, maskable, unwrapped
from tombola.sharded import is_sharded, local, placed, total, whole
from tombola.soft import SoftState
from tombola.states import check_attachment

UNDECIDED = 4.0  # |β·s| below it: the soft mask is still between 0.018 and 0.982

_live: weakref.WeakSet[Attachment] = weakref.WeakSet()


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    method: HardMethod | SoftMethod,
    *,
    steps: int,
    select: Select | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> Attachment:
    """Run ``method`` on ``model`` while ``optimizer`` trains it; the loop itself stays as it is.

    In a model with sparse layers (:class:`tombola.sparse.SparseLayer`) RigL, SET and GraNet move the connections of
    these, and nothing of the dense layers' size is ever held. Sparse layers begin with the connections that they have,
    however many: the method's density and budget are for dense parameters alone, which are only masked there if
    ``select`` says so. GraNet then prunes all of them together, down to its density. Masks name a sparse layer's
    connections as the weight of the dense layer, ``….weight``, those of a SparseGRU ``….weight_ih_l0`` and so on.

    Args:
        model: any module. Its storage, names and classes are not touched.
        optimizer: any ``torch.optim.Optimizer`` that holds the masked parameters and steps without a closure.
        method: a :class:`~tombola.ContinuousSparsification`, :class:`~tombola.Fixed`, …
        steps: optimiser steps that the run will make in all; schedules end with it.
        select: which parameters to mask, see :func:`~tombola.maskable`.
        steps_per_epoch: optimiser steps of one epoch, for methods that change something once an epoch.
        seed: seed of every random choice of the method. Give all ranks of a distributed run the same.

    Several ranks: attach after ``DistributedDataParallel(model)``, ``fully_shard(model)``, ``accelerator.prepare`` or
    ``fabric.setup``, to what they return, on all ranks. They compare arguments, masks and weights, and at each move the
    masks again; one that differs stops the run.

    Raises:
        ValueError, TypeError: something does not fit; the message names it and how to mend it. The model and the
            optimiser are then as they were.
        RuntimeError: ranks differ. Nothing has changed then, either.
    """
    return Attachment(model, optimizer, method, steps=steps, select=select, steps_per_epoch=steps_per_epoch, seed=seed)


class Attachment:
    """A method at work on a model. Made by :func:`attach`.

    Attributes:
        step: optimiser steps done since attaching. A step that loss scaling skipped does not count.
        steps: the number announced to ``attach``.
        parameters: name -> masked parameter; for a sparse layer its values.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: HardMethod | SoftMethod,
        *,
        steps: int,
        select: Select | None,
        steps_per_epoch: int | None,
        seed: int,
        state: Mapping[str, Any] | None = None,  # go on from it
        warns: bool = True,  # of layers that keep nothing
        copies: Any = None,  # as for Ranks
    ) -> None:
        optimizer = bare(optimizer)
        check_arguments(optimizer, method, steps, steps_per_epoch)
        self.method = method
        self.optimizer = optimizer
        self.steps = steps
        self.step = 0
        self._ranks = Ranks(model, copies=copies)
        found = maskable(model, select)
        self._model = weakref.ref(unwrapped(model))
        self.parameters: dict[str, Parameter] = dict(found)
        self._steps_per_epoch = steps_per_epoch
        self._seed = seed
        self._weights = sum(parameter.numel() for parameter in self.parameters.values())
        check_sharding(found, method, sparse=found.sparse)
        settings = {
            "the method": describe(method),
            "the seed": seed,
            "steps": steps,
            "steps_per_epoch": steps_per_epoch,
        }
        self._ranks.begin_alike(found, settings)
        self._callbacks: list[Callable[[Attachment], None]] = []
        self._skipped = self._inside_hard = False
        self._unchecked = True  # since attaching or loading
        self._final_scores: dict[str, Tensor] = {}
        self._warns, self._dead = warns, set[str]()  # the latter: of which it did
        self._detached = False
        begun = begin(found, optimizer, method, self._moment(), seed=seed, ranks=self._ranks, live=_live)
        self.parameters, self._state = begun.parameters, begun.state
        self._gradients = Gradients(self.parameters, self._ranks)
        begun.write() if state is None else self.load_state_dict(state)
        self._ranks.reshard()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        _live.add(self)
        self._warn_of_dead_layers()

    def __repr__(self) -> str:
        method, at = type(self.method).__name__, f"step {self.step} of {self.steps}"
        if isinstance(self._state, SoftState) and self._sharded:  # ranks that print it alone must not wait for others
            return f"Attachment({method}, {at})"
        return f"Attachment({method}, {at}, density {self.density:.4g})"

    @property
    def _sharded(self) -> bool:
        return any(map(is_sharded, self.parameters.values()))

    # ---- what it is now

    @property
    def masks(self) -> Masks:
        """The hard masks as they are now; for soft methods what their scores stand for, mostly score > 0.

        Those of a sharded model are brought together, so all ranks must ask for them.
        """
        return Masks({name: whole(mask) for name, mask in self._masks().items()})

    def _masks(self) -> Masks:
        """The same, sharded like their parameters."""
        if isinstance(self._state, HardState):
            return self._state.masks
        return self._state.method.kept(self._state.scores, seed=self._seed)

    @property
    def density(self) -> float:
        """Kept weights / masked weights, by the hard masks."""
        if isinstance(self._state, SoftState):
            return self._masks().density
        counts = self._state.counts().values()
        return sum(kept for kept, _ in counts) / max(sum(size for _, size in counts), 1)

    @property
    def scores(self) -> dict[str, Tensor]:
        """Parameter name -> score (a copy); empty for methods without scores. Kept after the mask has hardened.

        Scores are sharded like their weights: of a sharded model they are DTensors, which ``full_tensor()`` brings
        together. So are :attr:`weights`.
        """
        live = self._state.scores if isinstance(self._state, SoftState) else self._final_scores
        return {name: score.detach().clone() for name, score in live.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> weight that the optimiser updates (a copy): for soft methods the weight under the mask, for
        sparse layers their values."""
        if isinstance(self._state, SoftState):
            return {name: weight.clone() for name, weight in self._state.weights.items()}
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def set_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Replace the scores, at the beginning of a further round of a ticket search.

        Raises:
            ValueError: the method has none (any more), names or shapes differ, or one is NaN or +∞.
        """
        if isinstance(self._state, HardState):
            raise ValueError("set_scores: there are no scores under a hard mask")
        check_same_layout(self._state.scores, scores)
        for name, score in scores.items():
            if not bool((local(score) < torch.inf).all()):
                raise ValueError(f"set_scores: the scores of {name!r} hold NaN or infinity (−∞ alone is a score)")
        for name, score in self._state.scores.items():
            local(score).copy_(local(placed(scores[name], score)))
        self._state.write(self._moment())
        self._ranks.reshard()

    @property
    def score_optimizer(self) -> Optimizer | None:
        """The optimiser of the scores; None under hard masks.

        The sibling of the user's takes its settings from there before each step. One of the method's own
        (``score_optimizer=…``) is scheduled like any optimiser, ``StepLR(run.score_optimizer, …)``; its state is in
        :meth:`state_dict`.
        """
        return self._state.score_optimizer if isinstance(self._state, SoftState) else None

    def penalty(self) -> float:
        """The method's penalty at this moment, for logging; its gradient is already taken care of. 0 if it has none."""
        if isinstance(self._state, SoftState):
            return self._state.method.penalty_of(self._state.scores, self._moment())
        return 0.0

    def diagnostics(self) -> dict[str, Any]:
        """Whether the outcome can be trusted: density; undecided, the share of scores with |β·s| < 4; temperature
        (None for hard masks); dead_layers, the names of layers that keep nothing."""
        if isinstance(self._state, HardState):
            still = {"undecided": 0.0, "temperature": None, "dead_layers": self._state.dead()}
            return {"density": self.density} | still
        masks = self._masks()
        found = {"density": masks.density, "dead_layers": masks.dead()}
        beta = self._state.method.temperature(self._moment())
        undecided = sum(int(total(score.abs() * beta < UNDECIDED)) for score in self._state.scores.values())
        return found | {"undecided": undecided / self._weights, "temperature": beta}

    @contextmanager
    def hard(self) -> Iterator[None]:
        """Inside it the model is the ticket: weights under the hard masks. Nothing to do for hard methods.

        An optimiser step inside it is an error. All ranks of a sharded model must enter it.
        """
        if isinstance(self._state, HardState) or self._inside_hard:
            yield
            return
        self._inside_hard = True
        self._state.write_hard(self._masks())
        self._ranks.reshard()
        torch.clear_autocast_cache()  # inside an autocast block it holds low-precision copies of the soft weights
        try:
            yield
        finally:
            self._inside_hard = False
            if isinstance(self._state, SoftState):  # nobody detached meanwhile
                self._state.write_effective(self._moment())
            self._ranks.reshard()
            torch.clear_autocast_cache()

    def on_step(self, callback: Callable[[Attachment], None]) -> None:
        """Call ``callback(attachment)`` after each optimiser step that happened."""
        self._callbacks.append(callback)

    # ---- around the optimiser's step

    def _moment(self) -> Moment:
        return Moment(step=self.step, steps=self.steps, steps_per_epoch=self._steps_per_epoch, weights=self._weights)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("closure", args[1] if len(args) > 1 else None) is not None:
            raise RuntimeError(
                "optimizer.step(closure) would evaluate the loss at weights that are not the effective ones; compute "
                "loss.backward() first and call optimizer.step() without a closure"
            )
        # a fused optimiser under GradScaler skips the step inside its kernel
        overflow = getattr(optimizer, "found_inf", None)
        self._skipped = overflow is not None and bool(overflow > 0)
        if self._skipped:
            if isinstance(self._state, SoftState):
                self._state.before_skipped_step()
            return
        if self.step >= self.steps:
            raise RuntimeError(
                f"all {self.steps} steps announced to attach(steps={self.steps}) are done; announce as many as the "
                "loop makes, or call detach() to go on without the method"
            )
        if self._inside_hard:
            raise RuntimeError("optimizer.step() inside hard(): leave the `with run.hard():` block before training")
        if self._unchecked:
            self._unchecked = False
            self._ranks.reshard()
            if (model := self._model()) is not None:
                check_membership(self.parameters, model)
            self._ranks.stand_alike(self.step, self._state)
        moment = self._moment()
        self._gradients.check(self.step, look=self._must_look(), vouched_for=self._state.vouched_for(moment))
        if isinstance(self._state, (SoftState, DynamicState)):
            self._state.before_step(moment)

    def _must_look(self) -> bool:
        """Whether the gradients up to this step must be known to be finite, even if that means to wait for a device.

        Now and then, at the last step, and where masks are about to move or to harden: nobody can rank NaN.
        """
        last = self.step + 1
        if isinstance(self._state, SoftState):
            turns = self._state.method.harden_step(self.steps) == last
        else:
            turns = isinstance(self._state, DynamicState) and self._state.turns
        return turns or self.step % LOOK == 0 or last == self.steps

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._skipped:
            return
        before, self.step = self._moment(), self.step + 1
        if isinstance(self._state, DynamicState):
            if self._state.after_move_or_step(before):
                self._ranks.stand_alike(self.step, self._state)
                self._warn_of_dead_layers()
        elif isinstance(self._state, HardState):
            self._state.after_step()
        else:
            self._state.after_step(self._moment())
            if self._state.method.harden_step(self.steps) == self.step:
                self._harden(self._state)
                self._ranks.stand_alike(self.step, self._state)
        for callback in self._callbacks:
            callback(self)

    def _harden(self, soft: SoftState) -> None:
        masks = self._masks()
        soft.write_hard(masks)
        self._final_scores = {name: score.clone() for name, score in soft.scores.items()}
        self._state = HardState(self.parameters, self.optimizer)
        self._state.hold(masks)
        self._ranks.reshard()
        self._warn_of_dead_layers()

    def _warn_of_dead_layers(self) -> None:
        """Once of each."""
        dead = [] if isinstance(self._state, SoftState) else self._state.dead()
        new = [name for name in dead if name not in self._dead]
        self._dead.update(new)
        if new and self._warns:
            warnings.warn(
                f"no weight is left in {', '.join(new)} at step {self.step} of {type(self.method).__name__}, so "
                "nothing passes through; keep more weights, or use a budget that leaves some in each layer",
                stacklevel=4,
            )

    # ---- saving and leaving

    def state_dict(self, *, full: bool = False) -> dict[str, Any]:
        """Tensors and plain data: with those of the model and the optimiser all that it takes to go on bit by bit.

        Where sparse layers have their connections is in the model's state; this one knows a digest of it.

        Args:
            full: of a sharded model, bring everything together; all ranks must ask for it. The outcome does not depend
                on the number of ranks: any number of them, or one process, can go on from it. False: its tensors are
                sharded like the parameters, as those of ``model.state_dict()``, for ``torch.distributed.checkpoint``.
        """
        state: dict[str, Any] = {"method": describe(self.method), "step": self.step, "steps": self.steps}
        return state | saved(self._state, self._final_scores, full=full)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Load the model's and the optimiser's state too, before or after; that of a
        model with sparse layers before.

        Raises:
            ValueError: the state is of another method, other settings or other parameters, or damaged, or this
                attachment is detached, or sparse layers have their connections elsewhere. Nothing has changed then.
        """
        if self._detached:
            raise ValueError("this attachment is detached; call attach() again and load the state into the new one")
        step = check_attachment(state, self.method, self.steps)
        self._unchecked = True
        try:
            moment = replace(self._moment(), step=step)
            self._state, self._final_scores = restored(state, self._state, self.method, self.parameters, moment)
            self.step = step
            self._gradients.forget()
            if isinstance(self._state, HardState):
                self._dead.update(self._state.dead())  # it was said before the state was saved
        finally:
            self._ranks.reshard()

    def detach(self) -> None:
        """Leave a plain model with the weights of its ticket; hooks are gone. Calling it again changes nothing.

        All ranks of a sharded model must call it.
        """
        if not self._detached and isinstance(self._state, SoftState):
            if wrong := self._gradients.overdue(self.step):
                warnings.warn(f"detach: {wrong}", stacklevel=2)
            self._harden(self._state)
        self._let_go()

    def _let_go(self) -> None:
        """Remove the hooks and leave model and optimiser as they are: somebody may have loaded other values by now."""
        if self._detached:
            return
        self._detached = True
        if isinstance(self._state, HardState):
            self._state.leave()
        for hook in self._hooks:
            hook.remove()
        _live.discard(self)
