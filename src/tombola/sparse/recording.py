"""What the backward passes of a sparse layer leave for growing connections by the gradient of all weights: references
to the inputs and the output gradients."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tombola.sparse.execution import recorders
from tombola.sparse.growth import Piece
from tombola.sparse.layer import SparseLayer


class Recorder:
    """Inputs and output gradients of the backward passes that ``layer.values.grad`` is the sum of."""

    def __init__(self, name: str, layer: SparseLayer) -> None:
        self.name = name
        self._layer = layer
        self._pieces: list[tuple[Tensor, Tensor, int, int]] = []
        self._accumulated = False
        self._keys: list[int] = []
        self._hooks: list[RemovableHandle] = []
        weakref.finalize(self, _forget, self._keys, self._hooks).atexit = False

    def begin(self) -> None:
        """Record the backward passes from now on."""
        if not self._keys:
            at, mine = self._layer.pointers.data_ptr(), weakref.ref(self)

            def record(x: Tensor, gradient: Tensor, lent: bool) -> None:
                if (recorder := mine()) is not None:
                    recorder._record(x, gradient, lent)

            def accumulated(values: Tensor) -> None:
                if (recorder := mine()) is not None:
                    recorder._accumulated = True

            recorders[at] = record
            self._keys.append(at)
            self._hooks.append(self._layer.values.register_post_accumulate_grad_hook(accumulated))

    def end(self) -> None:
        """Record no longer, and let go what there is."""
        _forget(self._keys, self._hooks)
        self._pieces, self._accumulated = [], False

    def _record(self, x: Tensor, gradient: Tensor, lent: bool) -> None:
        so_far = self._layer.values.grad
        if self._accumulated and (so_far is None or not bool(so_far.any())):  # gradients were cleared meanwhile
            self._pieces, self._accumulated = [], False
        if lent:
            x, gradient = x.clone(), gradient.clone()
        x, gradient = x.detach(), gradient.detach()
        self._pieces.append((x, gradient, x._version, gradient._version))

    def pieces(self) -> list[Piece]:
        """What was recorded.

        Raises:
            RuntimeError: there is a gradient that was not recorded, or an input was overwritten since.
            FloatingPointError: not all of it is finite.
        """
        pieces = self._pieces if self._layer.values.grad is not None else []  # else they are of a step given up
        if not pieces and self._layer.values.grad is not None:
            raise RuntimeError(
                f"the backward pass of {self.name!r} was not seen, but it takes its inputs and output gradients to "
                "grow connections; call attach() before the forward pass, and set no gradients by hand"
            )
        for x, gradient, *versions in pieces:
            if [x._version, gradient._version] != versions:
                raise RuntimeError(
                    f"an input of {self.name!r} was overwritten between backward() and optimizer.step(), but it takes "
                    "the inputs to grow connections; use a new tensor for each batch"
                )
            if not (bool(x.isfinite().all()) and bool(gradient.isfinite().all())):
                raise FloatingPointError(
                    f"inputs or output gradients of {self.name!r} are not finite, so the loss went to NaN or infinity; "
                    "nothing was changed. Lower the learning rate, clip gradients or use a GradScaler"
                )
        return [(x, gradient) for x, gradient, *_ in pieces]


def _forget(keys: list[int], hooks: list[RemovableHandle]) -> None:
    while keys:
        recorders.pop(keys.pop(), None)
    while hooks:
        hooks.pop().remove()
