"""Fixed: train under given masks, a winning ticket's for instance. Frankle & Carbin 2019, section 2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tombola.masks import Masks
from tombola.methods.protocol import Sparse


@dataclass(frozen=True)
class Fixed:
    """Masks that never change. Layers of the model that they do not name stay dense."""

    shards: ClassVar[bool] = True

    masks: Masks

    def __post_init__(self) -> None:
        if not isinstance(self.masks, Masks):
            object.__setattr__(self, "masks", Masks(self.masks))

    def start(self, parameters: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
        """The given masks, checked against the parameters' shapes.

        Raises:
            ValueError: a mask for a parameter that is not there, or of another shape.
        """
        self._check_names(parameters)
        for name, mask in self.masks.items():
            if mask.shape != parameters[name].shape:
                shapes = f"{tuple(mask.shape)}, the parameter {tuple(parameters[name].shape)}"
                raise ValueError(f"Fixed: the mask of {name!r} has shape {shapes}; was it made for another model?")
        return Masks({name: mask.to(parameters[name].device) for name, mask in self.masks.items()})

    def start_sparse(
        self, parameters: Mapping[str, Tensor], layers: Mapping[str, Sparse], *, generator: torch.Generator
    ) -> dict[str, Tensor | None]:
        """The given masks of the dense parameters; those of sparse layers must be what these layers have.

        Raises:
            ValueError: as :meth:`start`, or a sparse layer has other connections.
        """
        self._check_names([*layers, *parameters])
        for name, layer in layers.items():
            if name in self.masks and not torch.equal(self.masks[name].cpu(), layer.mask()):
                raise ValueError(
                    f"Fixed: the mask of {name!r} is not where this sparse layer has its connections; make the layer "
                    "with that mask, from_dense(layer, mask), or leave it out of the masks"
                )
        sparse: dict[str, Tensor | None] = {name: None for name in layers if name in self.masks}
        rest = {name: mask for name, mask in self.masks.items() if name not in layers}
        return {**sparse, **(Fixed(Masks(rest)).start(parameters, generator=generator) if rest else {})}

    def _check_names(self, names: Collection[str]) -> None:
        for name in self.masks:
            if name not in names:
                raise ValueError(
                    f"Fixed: a mask for {name!r}, which is not among {', '.join(names)}; "
                    "was it made for another model, or must select=… name it?"
                )
