"""A hard method on a model with sparse layers: it moves their connections themselves. Part of ``attach``."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tombola.dynamic import DynamicState
from tombola.masks import Masks, largest, pack
from tombola.methods.protocol import Connections, DynamicMethod, HardMethod, Moment, Plan, RewiringMethod, SparseMethod
from tombola.ranks import Ranks
from tombola.selection import Maskable
from tombola.sparse.growth import Piece
from tombola.sparse.layer import SparseLayer
from tombola.sparse.recording import Recorder
from tombola.sparse.rewiring import Rewiring
from tombola.states import check_keys, checked_masks


class SparseState(DynamicState):
    """Sparse layers, whose positions are in the layers themselves, and masks on dense parameters beside them.

    ``parameters`` are the dense ones alone.
    """

    def __init__(
        self,
        found: Mapping[str, Parameter],
        layers: Mapping[str, SparseLayer],
        optimizer: Optimizer,
        method: HardMethod,
        generator: torch.Generator,
        ranks: Ranks,
    ) -> None:
        dense = {name: parameter for name, parameter in found.items() if name not in layers}
        super().__init__(dense, optimizer, method, generator)  # type: ignore[arg-type]
        self.layers = layers
        self.found = dict(found)
        self._group = ranks.replicated
        self.moves = isinstance(method, DynamicMethod)
        self._recorders = {name: Recorder(name, layer) for name, layer in layers.items()} if self.moves else {}
        self._pieces: dict[str, list[Piece]] = {}  # from before the step to the move
        self._warned = self._group is not None or not several_ranks()

    @property
    def masks(self) -> Masks:
        """Those that are held, and where the sparse layers have connections; made on demand."""
        dense = self._dense_masks()
        return Masks({n: self.layers[n].mask() if n in self.layers else dense[n] for n in self.found})

    def _dense_masks(self) -> Mapping[str, Tensor]:
        return super().masks if self.parameters else {}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> weights that are kept, and all; nothing of the dense layers' size is made for it."""
        dense = {name: (int(mask.sum()), mask.numel()) for name, mask in self._dense_masks().items()}
        sparse = {name: (layer.values.numel(), layer.geometry.weights) for name, layer in self.layers.items()}
        return {name: (sparse | dense)[name] for name in self.found}

    def marks(self) -> dict[str, object]:
        """See :class:`HardState`."""
        layers = {f"where the sparse layer {name!r} has connections": digest(ly) for name, ly in self.layers.items()}
        return super().marks() | layers

    def prepare(self, moment: Moment) -> None:
        """Get ready for the backward passes that follow ``moment``."""
        self._plan = self.method.plan(moment) if self.moves else Plan()
        self.backward.dense = self._plan.gradient
        if self._plan.gradient and not self._warned:
            self._warned = True
            warnings.warn(
                f"attach: this is one of several ranks, but the model is no DistributedDataParallel, so "
                f"{type(self.method).__name__} grows connections by the gradients of this rank alone; if the ranks "
                "share each batch, attach to the wrapped model",
                stacklevel=4,
            )
        for recorder in self._recorders.values():
            recorder.end()
            if self._plan.gradient:
                recorder.begin()

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """See :class:`DynamicState`; the gradients that it shows the method are those of dense parameters alone."""
        self.check_layers()
        if self._plan.gradient:
            self._pieces = {name: recorder.pieces() for name, recorder in self._recorders.items()}
        super().before_step(moment)

    def check_layers(self) -> None:
        """Raise RuntimeError for a sparse layer that was moved or changed."""
        for name, layer in self.layers.items():
            check_layer(name, layer)
            if layer.values is not self.found[name]:
                raise RuntimeError(f"the values of the sparse layer {name!r} are another parameter; attach anew")

    def _check_frozen(self) -> None:
        mine = self.parameters
        try:
            self.parameters = self.found  # all of them
            super()._check_frozen()
        finally:
            self.parameters = mine

    def _move(self, moment: Moment) -> None:
        assert isinstance(self.method, RewiringMethod)
        masks = self._dense_masks()
        moving: dict[str, Connections] = {}
        sparse: dict[str, Rewiring] = {}
        dense: dict[str, _Masked] = {}
        for name, parameter in self.found.items():
            if name in self.layers:
                pieces = self._pieces.pop(name, [])
                moving[name] = sparse[name] = Rewiring(self.layers[name], pieces, self._group)
            else:
                moving[name] = dense[name] = _Masked(parameter, masks[name], self.memory.pop(name, None))
        self.method.rewire(moving, moment, generator=self.generator)
        for rewiring in sparse.values():
            rewiring.finish(self.optimizer)
        self.hold({name: masked.mask for name, masked in dense.items()})

    def leave(self) -> None:
        """Remove the hooks, and record no longer."""
        super().leave()
        for recorder in self._recorders.values():
            recorder.end()

    # ---- saving

    def state_dict(self, *, full: bool = False) -> dict[str, Any]:
        """What it takes to go on, besides the model's and the optimiser's state."""
        masks = self._dense_masks()
        hard = {
            "masks": {name: pack(mask) for name, mask in masks.items()},
            "shapes": {name: list(mask.shape) for name, mask in masks.items()},
            "positions": {name: digest(layer) for name, layer in self.layers.items()},
        }
        return {"hard": hard} | ({"dynamic": super().state_dict()} if self.moves else {})

    def check(self, state: object) -> None:
        """Raise ValueError unless ``state`` is one of :meth:`state_dict` that fits."""
        self._loaded(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.hold(self._loaded(state))
        if self.moves:
            super().load_state_dict(state["dynamic"])

    def _loaded(self, state: object) -> Mapping[str, Tensor]:
        """The masks of the dense parameters, out of a checked state."""
        assert isinstance(state, Mapping)
        hard = state.get("hard")
        check_keys(hard, ("masks", "shapes", "positions"), "an attachment to a model with sparse layers")
        assert isinstance(hard, Mapping)
        saved = hard["positions"]
        if not isinstance(saved, Mapping) or list(saved) != list(self.layers):
            theirs = ", ".join(map(str, saved)) if isinstance(saved, Mapping) and saved else "none"
            raise ValueError(f"the state is of other sparse layers: {theirs} instead of {', '.join(self.layers)}")
        for name, layer in self.layers.items():
            if saved[name] != digest(layer):
                raise ValueError(
                    f"the sparse layer {name!r} has its connections elsewhere than when the state was saved; they are "
                    "in the model's own state_dict(): load that first"
                )
        masks: Mapping[str, Tensor] = {}
        if self.parameters or hard["masks"]:
            masks = checked_masks(hard["masks"], self.parameters, {} if hard["shapes"] is None else hard["shapes"])
        if self.moves:
            super().check(state.get("dynamic"))
        return masks


class _Masked:
    """The connections of a dense parameter under a mask, as a method moves them."""

    def __init__(self, weight: Tensor, mask: Tensor, gradient: Tensor | None) -> None:
        self.size = mask.numel()
        self.mask = mask.clone()
        self._weight, self._gradient = weight.detach(), gradient

    @property
    def count(self) -> int:
        return int(self.mask.sum())

    def magnitudes(self) -> Tensor:
        return self._weight[self.mask].abs().cpu()

    def keep(self, chosen: Tensor) -> None:
        self.mask[self.mask.clone()] = chosen.to(self.mask.device)

    def grow(self, number: int, *, by: Literal["gradient", "chance"], generator: torch.Generator) -> None:
        if not number:
            return
        if by == "chance":
            growth = torch.rand(self.mask.shape, generator=generator).to(self.mask.device)
        else:
            assert self._gradient is not None
            growth = self._gradient.abs()
        self.mask |= largest(torch.where(self.mask, -1.0, growth), number, generator=generator)


def begin_sparse(
    found: Maskable,
    optimizer: Optimizer,
    method: object,
    generator: torch.Generator,
    ranks: Ranks,
) -> tuple[SparseState, dict[str, Tensor]]:
    """The state of a method on a model with sparse layers, and the masks of the dense parameters to begin with.

    Raises:
        ValueError: the method cannot work on them, or a layer is not in order.
    """
    name = type(method).__name__
    if not isinstance(method, SparseMethod) or (
        isinstance(method, DynamicMethod) and not isinstance(method, RewiringMethod)
    ):
        raise ValueError(
            f"attach: {name} needs scores, gradients or weights of the dense layers' size, which sparse layers "
            f"({', '.join(found.sparse)}) never hold; use RigL, SET, GraNet, Static or Fixed, or make them dense with "
            "layer.to_dense()"
        )
    if ranks.replicated is not None and isinstance(method, RewiringMethod) and method.prunes:
        raise ValueError(
            f"attach: {name} makes sparse layers smaller, which DistributedDataParallel cannot follow; use RigL or SET"
        )
    for layer_name, layer in found.sparse.items():
        try:
            check_layer(layer_name, layer)
        except RuntimeError as error:
            raise ValueError(f"attach: {error}") from None
    dense = {n: parameter for n, parameter in found.items() if n not in found.sparse}
    begun = method.start_sparse(dense, found.sparse, generator=generator)
    layers = {n: layer for n, layer in found.sparse.items() if n in begun}
    kept = {n: parameter for n, parameter in found.items() if n in begun}
    state = SparseState(kept, layers, optimizer, method, generator, ranks)
    return state, {n: mask for n, mask in begun.items() if mask is not None}


def check_layer(name: str, layer: SparseLayer) -> None:
    """Raise RuntimeError unless the layer is as sparse layers are."""
    values = layer.values
    if values.dtype is not torch.float32 or not values.is_cpu or not layer.pointers.is_cpu:
        raise RuntimeError(
            f"the sparse layer {name!r} has {values.dtype} values on {values.device}; sparse layers are float32 on the "
            "CPU, so leave the model there"
        )
    if values.shape != layer.columns.shape:
        raise RuntimeError(
            f"the sparse layer {name!r} has {values.numel()} values at {layer.columns.numel()} positions; load both "
            "from one state_dict()"
        )


def digest(layer: SparseLayer) -> str:
    """SHA-256 of where a layer has its connections, in hex."""
    content = hashlib.sha256(str(tuple(layer.shape)).encode())
    for tensor in (layer.pointers, layer.columns):
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def several_ranks() -> bool:
    """Whether this process is one of several that torch.distributed connects."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
