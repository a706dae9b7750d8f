"""Holding weights at zero under masks, whatever the optimiser does. Part of ``attach``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tombola.bits import PackedMask, clear
from tombola.masks import Masks
from tombola.methods.protocol import Moment
from tombola.sharded import is_sharded, like, local, placed, total


class HardState:
    """Masks on parameters: gradients are masked in each backward pass, dropped weights are zeroed after each step.

    A mask takes one bit a weight. ``backward.dense`` lets gradients through unmasked.
    """

    def __init__(self, parameters: Mapping[str, Parameter], optimizer: Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.backward = BackwardPass()
        self._packed: dict[str, PackedMask] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._hooks: list[RemovableHandle] = []
        # not __del__: a handle in a reference cycle has forgotten its hook by the time that is called
        weakref.finalize(self, _remove, self._hooks).atexit = False

    @property
    def masks(self) -> Masks:
        """The masks that are held, sharded like their parameters."""
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        return Masks(masks | {name: like(packed.mask(), masks[name]) for name, packed in self._packed.items()})

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> weights that are kept, and all."""
        return self._counts

    def dead(self) -> list[str]:
        """Names of the layers that keep nothing."""
        return [name for name, (kept, size) in self.counts().items() if kept == 0 < size]

    def marks(self) -> dict[str, object]:
        """What all ranks must have alike, by what it is called."""
        marks: dict[str, object] = dict.fromkeys(map(mask_of, self.parameters), "everything")
        return marks | {mask_of(name): packed.bytes for name, packed in self._packed.items()}

    def parts(self) -> list[str]:
        """Those of the :meth:`marks` that are about a part that this rank has."""
        return [mask_of(name) for name, parameter in self.parameters.items() if is_sharded(parameter)]

    @torch.no_grad()
    def hold(self, masks: Mapping[str, Tensor]) -> None:
        """Take ``masks``: clear weights, gradients and optimiser state where they are False, and keep them so."""
        self.release()
        mine = {name: placed(mask, self.parameters[name]) for name, mask in masks.items()}
        self._counts = {name: (int(total(mask)), mask.numel()) for name, mask in mine.items()}
        # a layer that keeps every weight needs no work at all
        sparse = {name: mask for name, mask in mine.items() if self._counts[name][0] < self._counts[name][1]}
        self._packed = {name: PackedMask(local(mask), local(self.parameters[name])) for name, mask in sparse.items()}
        for name, packed in self._packed.items():
            parameter = self.parameters[name]
            for entry in (parameter, parameter.grad, *self.optimizer.state.get(parameter, {}).values()):
                if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                    packed.clear(local(entry))
            hook = partial(self.backward.accumulated, packed=packed)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    def vouched_for(self, moment: Moment) -> set[str]:
        """Names of the parameters whose gradients need no look at ``moment``: they got it when they were masked."""
        gradients = {name: self.parameters[name].grad for name in self._packed}
        return {name for name, grad in gradients.items() if grad is not None and self.backward.is_finite(grad)}

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Mask gradients that were let through."""
        found = [(self.parameters[name].grad, packed) for name, packed in self._packed.items()]
        clear((local(gradient), packed) for gradient, packed in found if gradient is not None)

    @torch.no_grad()
    def after_step(self) -> None:
        """Zero the dropped weights again: weight decay, momentum or a foreign optimiser may have moved them."""
        clear((local(self.parameters[name]), packed) for name, packed in self._packed.items())
        self.backward.forget()

    def release(self) -> None:
        """Remove the hooks; the weights stay as they are."""
        _remove(self._hooks)
        self.backward.forget()

    def leave(self) -> None:
        """The same, for good."""
        self.release()


def mask_of(name: str) -> str:
    """What the mask of this parameter is called in messages."""
    return f"the mask of {name!r}"


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


class BackwardPass:
    """The gradients that accumulate in a backward pass, masked together when it is over.

    To mask each as it comes would take several times as long: the pass's own arrays have pushed all else out of the
    caches by then, the code that masks as well.

    Attributes:
        dense: let them through unmasked.
    """

    def __init__(self) -> None:
        self.dense = False
        self._number = _OUTSIDE  # PyTorch's, of the pass that will call at its end
        self._accumulated = list[tuple[Parameter, PackedMask]]()
        self._finite: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by id, with the version that was seen

    def accumulated(self, parameter: Parameter, *, packed: PackedMask) -> None:
        """``parameter.grad`` is there, to be masked by ``packed``."""
        self._accumulated.append((parameter, packed))
        number = torch._C._current_graph_task_id()
        if number == _OUTSIDE or is_sharded(parameter):  # whose gradients may be on their way at the pass's end
            self._mask()
        elif number != self._number:  # not that of a pass that has failed, or of one inside this
            self._number = number
            # what DistributedDataParallel does at the end comes first
            at_the_end(partial(at_the_end, self._mask))

    @torch.no_grad()
    def _mask(self) -> None:
        gradients = [] if self.dense else [(parameter.grad, packed) for parameter, packed in self._accumulated]
        self._accumulated.clear()
        # inf and NaN at a dropped weight become 0 as well, so that an overflow there cannot reach anything
        # a sparse one is refused at the step, by name
        usable = [(local(grad), packed) for grad, packed in gradients if grad is not None and not grad.is_sparse]
        self._finite |= {id(grad): (weakref.ref(grad), grad._version) for grad in clear(usable)}

    def is_finite(self, gradient: Tensor) -> bool:
        """Whether ``gradient`` was seen to be finite when it was masked, and has not changed since."""
        seen, version = self._finite.get(id(gradient), (None, 0))
        return seen is not None and seen() is gradient and version == gradient._version

    def forget(self) -> None:
        """Let the gradients that have come so far be."""
        self._accumulated.clear()
        self._finite.clear()


_OUTSIDE = -1  # of any backward pass


def at_the_end(callback: Callable[[], None]) -> None:
    """Call ``callback`` at the end of the backward pass that is going on, after what was given here before."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)
