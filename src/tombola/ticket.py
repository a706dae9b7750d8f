"""Ticket: masks, the weights to start from, and where they came from, in one file that plain PyTorch can read."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tombola.digest import digest
from tombola.files import write_atomically
from tombola.masks import Masks, pack, permutation, unpack
from tombola.selection import unwrapped
from tombola.sharded import local, part_of
from tombola.states import check_plain, finite

FORMAT = "tombola-ticket-1"
MOST_DIMENSIONS = 32  # that numpy and torch both have


@dataclass(frozen=True, eq=False)
class Ticket:
    """A sub-network to train.

    Attributes:
        masks: which weights it has.
        start: parameter or buffer name -> the value to start from, of full shape, on the CPU; 0 at dropped weights.
        provenance: plain data: method with its settings, round, seed, steps, versions, names of model and data.

    Raises:
        ValueError: a masked parameter without start weights or of another shape, or start weights that are not finite.
        TypeError: the provenance is not plain data.
    """

    masks: Masks
    start: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_plain("ticket: provenance", self.provenance)
        masks = self.masks.to("cpu")
        start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.start.items()}
        for name, mask in masks.items():
            if name not in start:
                raise ValueError(f"ticket: no start weights for the masked parameter {name!r}")
            if start[name].shape != mask.shape:
                shapes = f"{tuple(mask.shape)} and {tuple(start[name].shape)}"
                raise ValueError(f"ticket: mask and start weights of {name!r} differ in shape, {shapes}")
            start[name].masked_fill_(~mask, 0)
        for name, tensor in start.items():
            if not finite(tensor):
                raise ValueError(
                    f"ticket: the start values of {name!r} are not finite; the network they come from broke"
                )
        object.__setattr__(self, "masks", masks)
        object.__setattr__(self, "start", start)

    def __repr__(self) -> str:
        return f"Ticket({self.masks.kept:,} of {self.masks.total:,} weights, density {self.density:.4g})"

    @property
    def density(self) -> float:
        """Kept weights / masked weights."""
        return self.masks.density

    # ---- using it

    @torch.no_grad()
    def restore(self, model: nn.Module, strict: bool = True) -> Masks:
        """Write the masked start weights, and the start values of all else that is stored, into ``model`` in place.

        Args:
            model: the network, wrapped or not.
            strict: True: names and shapes must be exactly the ticket's. False: take the parts whose name and shape
                fit and leave the rest of the model as it is, for transfer to a net with another head.

        Returns:
            The masks of the restored parameters, on the model's device, ready for :class:`~tombola.Fixed`.

        Raises:
            ValueError: something does not fit (strict), or nothing of the masked part does. The model is unchanged.
        """
        own = model_tensors(model)
        fits = {name for name, tensor in self.start.items() if name in own and own[name].shape == tensor.shape}
        if strict:
            self._check_strict(own, type(unwrapped(model)).__name__)
        elif not any(name in fits for name in self.masks):
            raise ValueError(f"ticket: no masked parameter fits this model; the ticket has {', '.join(self.masks)}")
        for name in fits:
            local(own[name]).copy_(part_of(self.start[name], own[name]))
        return Masks({name: mask.to(own[name].device) for name, mask in self.masks.items() if name in fits})

    def _check_strict(self, own: Mapping[str, Tensor], model: str) -> None:
        mend = (
            "build the model that the ticket was made from, or take the fitting part with restore(model, strict=False)"
        )
        for name in [*self.start, *own]:
            if name not in own:
                raise ValueError(f"ticket: {model} has no {name!r}; {mend}")
            if name not in self.start:
                raise ValueError(f"ticket: {name!r} of {model} is not in the ticket; {mend}")
            if own[name].shape != self.start[name].shape:
                shapes = f"{tuple(self.start[name].shape)} in the ticket, {tuple(own[name].shape)} in {model}"
                raise ValueError(f"ticket: {name!r} has shape {shapes}; {mend}")

    # ---- controls

    def shuffled(self, *, seed: int = 0) -> Ticket:
        """The control that keeps all but the structure: in each masked layer the kept weights, as many and with the
        same start values, at positions drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        masks, start = {}, dict(self.start)
        for name, mask in self.masks.items():
            order = permutation(mask, generator)
            masks[name] = mask.flatten()[order].view(mask.shape)
            start[name] = start[name].flatten()[order].view(mask.shape)
        return Ticket(Masks(masks), start, {**self.provenance, "control": {"kind": "shuffled", "seed": seed}})

    def reinitialised(self, model: nn.Module, *, seed: int = 0) -> Ticket:
        """The control that keeps the structure alone: the same masks over freshly initialised weights.

        ``model`` says how to initialise: its own ``reset_parameters()`` if it has one, else that of each of its
        modules. It is not changed, and neither is torch's global random state.

        Raises:
            ValueError: a module has parameters of its own but no ``reset_parameters()``.
        """
        fresh = copy.deepcopy(unwrapped(model)).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reset(fresh)
        start = {name: tensor for name, tensor in model_tensors(fresh).items() if name in self.start}
        control = {"kind": "reinitialised", "seed": seed}
        return Ticket(self.masks, {**self.start, **start}, {**self.provenance, "control": control})

    # ---- the file

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: a bit per masked weight, the kept start weights, provenance.

        The same ticket always makes the same bytes.

        Raises:
            OSError: the file cannot be written; an older one is then as it was.
        """
        tensors = {}
        for name, tensor in self.start.items():
            if name in self.masks:
                tensors[f"mask/{name}"] = pack(self.masks[name])
                tensor = tensor[self.masks[name]]
            tensors[f"start/{name}"] = tensor.contiguous().clone()
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        about = {"shapes": json.dumps(shapes), "provenance": json.dumps(self.provenance)}
        metadata = {"format": FORMAT, **about, "sha256": digest(tensors, about.values())}
        write_atomically(Path(path), _in_order(save(tensors, metadata)))

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read a file of :meth:`save`. Nothing in it is ever executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a ticket, or not as it was written; the message names the entry.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = [metadata.get("shapes", ""), metadata.get("provenance", "")]
            if metadata.get("sha256") != digest(tensors, about):
                raise ValueError(
                    "its content does not match its checksum, so the file is damaged; copy or make it again"
                )
            return cls(*_unpacked(tensors, json.loads(about[0])), json.loads(about[1]))
        except FileNotFoundError:
            raise
        except (SafetensorError, ValueError, TypeError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} cannot be read as a ticket: {reason}") from error


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their keys; as written, they are in another each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _unpacked(tensors: Mapping[str, Tensor], shapes: object) -> tuple[Masks, dict[str, Tensor]]:
    if not isinstance(shapes, dict):
        raise ValueError("its shapes are not a mapping")
    masks, start = {}, {}
    for name, shape in shapes.items():
        if not _is_shape(shape):
            raise ValueError(f"the shape of {name!r} is {shape!s:.80}")
        for entry in (f"mask/{name}", f"start/{name}"):
            if entry not in tensors:
                raise ValueError(f"entry {entry!r} is missing")
        try:
            masks[name] = unpack(tensors[f"mask/{name}"], tuple(shape))
        except ValueError as error:
            raise ValueError(f"entry 'mask/{name}': {error}") from None
        values = tensors[f"start/{name}"]
        if values.shape != (int(masks[name].sum()),):
            raise ValueError(
                f"entry 'start/{name}' has {values.numel()} values for {int(masks[name].sum())} kept weights"
            )
        start[name] = torch.zeros(shape, dtype=values.dtype)
        start[name][masks[name]] = values
    for entry, tensor in tensors.items():
        kind, _, name = entry.partition("/")
        if kind not in ("mask", "start") or (kind == "mask" and name not in masks):
            raise ValueError(f"entry {entry!r} does not belong there")
        start.setdefault(name, tensor)
    return Masks(masks), start


def _is_shape(value: object) -> bool:
    """Whether torch can make a tensor of this shape, be it one without entries."""
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        return False
    return all(type(size) is int and size >= 0 for size in value) and math.prod(max(n, 1) for n in value) < 2**48


# ---- models


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or persistent buffer of ``model``, no copies; a tied one once, under its first name."""
    plain = unwrapped(model)
    persistent = plain.state_dict(keep_vars=True)
    named = [*plain.named_parameters(), *plain.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in persistent}


def reset(model: nn.Module) -> None:
    """Initialise ``model`` anew: by its own ``reset_parameters()``, else by that of each module.

    Raises:
        ValueError: a module has parameters of its own but no ``reset_parameters()``.
    """
    for module in [model] if hasattr(model, "reset_parameters") else model.modules():
        # attention has it under a private name
        again = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if callable(again):
            again()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"{type(module).__name__} has parameters but no reset_parameters(); give it, or the whole model, one"
            )
