"""What can be wrong with a saved state, each with its message. Everything is checked before anything is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adafactor, Optimizer

from tombola.describe import describe
from tombola.masks import Masks, unpack
from tombola.methods.protocol import HardMethod, SoftMethod, is_number
from tombola.sharded import is_sharded, local, placed

HOW = ("fused", "foreach")  # settings of an optimiser that do not matter to what it computes


def check_attachment(state: Mapping[str, Any], method: HardMethod | SoftMethod, steps: int) -> int:
    """Raise ValueError unless ``state`` is one of an attachment of this method over so many steps; return its step."""
    check_keys(state, ("method", "step", "steps"), "an attachment")
    if (theirs := describe(state["method"])) != (mine := describe(method)):
        raise ValueError(f"the state was saved with {theirs}, this attachment runs {mine}; attach the same")
    if (announced := describe(state["steps"])) != steps:
        raise ValueError(f"the state was saved with steps={announced}, this attachment has steps={steps}")
    check_count("step", step := state["step"], least=0, most=steps)
    if "soft" not in state and "hard" not in state:
        raise ValueError("this is not the state of an attachment: it has neither 'soft' nor 'hard'")
    hardens = method.harden_step(steps) if isinstance(method, SoftMethod) else 0
    if ("hard" in state) != (hardens is not None and step >= hardens):
        raise ValueError(f"the saved masks are not those of step {step}: the state is from after detach(), or damaged")
    return int(step)


def checked_outcome(
    hard: object, method: HardMethod | SoftMethod, parameters: Mapping[str, Parameter]
) -> tuple[Masks, dict[str, Tensor]]:
    """Hard masks, and the scores they come from if any, out of an attachment's state, on the parameters' devices."""
    if isinstance(hard, Mapping) and "positions" in hard:
        raise ValueError(
            "the state is of a model with sparse layers, of which this one has none; load it into such a one"
        )
    check_keys(hard, ("masks", "shapes", "scores"), "an attachment")
    assert isinstance(hard, Mapping)
    masks = checked_masks(hard["masks"], parameters, {} if hard["shapes"] is None else hard["shapes"])
    if not isinstance(method, SoftMethod):
        return masks, {}
    check_tensors(
        "scores", hard["scores"], {n: method.scores(p.detach()) for n, p in parameters.items()}, infinite=True
    )
    return masks, {name: placed(score, parameters[name]) for name, score in hard["scores"].items()}


def check_keys(state: object, keys: Iterable[str], what: str) -> None:
    """Raise ValueError unless ``state`` is a mapping that has all ``keys``."""
    if not isinstance(state, Mapping):
        raise ValueError(f"this is not the state of {what}: it is {type(state).__name__}, not a mapping")
    for key in keys:
        if key not in state:
            raise ValueError(f"this is not the state of {what}: it has no {key!r}")


def check_count(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """Raise ValueError unless ``value`` is a whole number from ``least`` to ``most``."""
    if type(value) is not int or value < least or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"the saved {name} must be a whole number {span}, not {describe(value)!r}")


def _whole_mask(saved: object, mine: Tensor) -> bool:
    return isinstance(saved, Tensor) and saved.dtype is torch.bool and saved.shape == mine.shape


def _shard(part: str, name: str, saved: Tensor, mine: Tensor) -> Tensor:
    """``saved`` as a tensor that lies over the ranks as ``mine`` does."""
    try:
        return placed(saved, mine)
    except ValueError as error:
        raise ValueError(f"the saved {part!r} do not fit at {name!r}: {error}") from None


def check_tensors(part: str, saved: object, mine: Mapping[str, Tensor], *, infinite: bool = False) -> None:
    """Raise ValueError unless ``saved`` has the names, shapes and types of ``mine`` and holds finite values.

    With ``infinite``, −∞ is let through: the score of a weight that is gone for good.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"the saved {part!r} are {type(saved).__name__}, not a mapping of names to tensors")
    for name in [*mine, *saved]:
        if name not in saved or name not in mine:
            owner = "the state" if name in saved else "this model"
            raise ValueError(f"the saved {part!r} are of other parameters: only {owner} has {name!r}")
        tensor = saved[name]
        if (found := _kind(tensor)) != (wanted := _kind(mine[name])):
            raise ValueError(f"the saved {part!r} are of another model: {name!r} is {found}, here {wanted}")
        tensor = local(_shard(part, name, tensor, mine[name]))
        if not (bool((tensor < torch.inf).all()) if infinite else finite(tensor)):
            raise ValueError(f"the saved {part!r} hold NaN or infinite values at {name!r}; go on from an earlier state")


def finite(tensor: Tensor) -> bool:
    """Whether a tensor of any type holds neither NaN nor an infinity."""
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch cannot ask all of the one-byte types
    return bool(tensor.isfinite().all())


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    layout = "" if value.layout is torch.strided else f"{value.layout} "
    return f"{layout}{value.dtype} of shape {tuple(value.shape)}"


def checked_masks(packed: object, mine: Mapping[str, Tensor], shapes: object = None) -> Masks:
    """Masks from their packed bits, for exactly the layers of ``mine``, on the devices of these.

    Raises:
        ValueError: other layers or shapes, or bits that do not fill them.
    """
    if not isinstance(packed, Mapping) or list(packed) != list(mine):
        names = ", ".join(map(str, packed)) if isinstance(packed, Mapping) else type(packed).__name__
        raise ValueError(f"the saved 'masks' are of other parameters: {names} instead of {', '.join(mine)}")
    masks = {}
    for name, bits in packed.items():
        shape = list(mine[name].shape)
        saved = describe(shapes.get(name) if isinstance(shapes, Mapping) else shapes)
        if shapes is not None and saved != shape:
            saved = tuple(saved) if isinstance(saved, list) else saved
            raise ValueError(
                f"the saved mask of {name!r} is of another model: its shape is {saved}, here {tuple(shape)}"
            )
        if is_sharded(bits) and (bits.dtype, bits.shape) != (torch.bool, mine[name].shape):
            raise ValueError(f"the saved mask of {name!r} is {_kind(bits)}, not a mask of shape {tuple(shape)}")
        if is_sharded(bits) or _whole_mask(bits, mine[name]):  # of a sharded model
            masks[name] = _shard("masks", name, bits, mine[name])
            continue
        if not isinstance(bits, Tensor):
            raise ValueError(f"the saved mask of {name!r} is {type(bits).__name__}, not a tensor of packed bits")
        try:
            masks[name] = unpack(bits.cpu(), tuple(shape)).to(mine[name].device)
        except ValueError as error:
            raise ValueError(f"the saved mask of {name!r} is damaged or of another model: {error}") from None
    return Masks(masks)


def check_optimizer(part: str, saved: Any, optimizer: Optimizer) -> None:
    """Raise ValueError unless ``saved`` fits ``optimizer``: its groups, and entries of its parameters' shapes."""
    check_keys(saved, ("param_groups", "state"), f"an optimiser ({part})")
    groups, entries = saved["param_groups"], saved["state"]
    listed = isinstance(groups, list) and all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    )
    if not (listed and isinstance(entries, Mapping) and all(isinstance(entry, Mapping) for entry in entries.values())):
        raise ValueError(f"this is not the state of an optimiser ({part}): it has no lists of parameters and entries")
    theirs, mine = [len(group["params"]) for group in groups], [len(g["params"]) for g in optimizer.param_groups]
    indices = [index for group in groups for index in group["params"]]
    if theirs != mine or not all(type(index) is int for index in indices) or len({*indices}) != sum(mine):
        raise ValueError(f"the saved {part!r} has groups of {theirs} parameters, here they are of {mine}")
    for group, here in zip(groups, optimizer.param_groups, strict=True):
        for key in group.keys() & here.keys() - {"params", *HOW}:
            saved_as, is_here = describe(group[key]), describe(here[key])
            if not _alike(saved_as, is_here):
                raise ValueError(f"the saved {part!r} has {key}={saved_as!r}, here it is {is_here!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for key, value in entries.get(index, {}).items():
            if isinstance(value, Tensor):
                _check_entry(part, key, value, parameter, optimizer)
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    try:
        twin.load_state_dict(copy.deepcopy(saved))  # which replaces, and does not change, what the two share
    except Exception as error:  # whatever an optimiser makes of entries that it does not know
        raise ValueError(f"the saved {part!r} cannot be loaded by {type(optimizer).__name__}: {error!r}") from None


def _alike(one: object, other: object) -> bool:
    """Whether two settings, described, are of one kind, and numbers among them finite."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return (is_number(one) and is_number(other)) or (type(one) is type(other) and not isinstance(one, float))


def _check_entry(part: str, key: str, value: Tensor, parameter: Tensor, optimizer: Optimizer) -> None:
    # torch's own optimisers keep entries of the parameter's shape, and fused ones would not look before they read
    strict = type(optimizer).__module__.startswith("torch.") and not isinstance(optimizer, Adafactor)
    if strict and value.ndim and (value.shape != parameter.shape or value.layout is not parameter.layout):
        shapes = f"{tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
        raise ValueError(f"the saved {part!r} is of another model: {key!r} has shape {shapes}")
    if is_sharded(value):
        _shard(part, key, value, parameter)
    if value.layout is torch.strided and not finite(local(value)):
        raise ValueError(f"the saved {part!r} holds NaN or infinite values in {key!r}; go on from an earlier state")


def check_plain(part: str, value: object) -> None:
    """Raise TypeError unless ``value`` is None or a mapping that JSON can hold."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{part} must be a mapping of plain data, not {type(value).__name__}")
    try:
        json.dumps(dict(value or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{part} must be plain data that JSON can hold: {error}") from None


def check_generator(part: str, saved: object, generator: torch.Generator) -> None:
    """Raise ValueError unless ``saved`` is a state of a generator like this one."""
    try:
        torch.Generator(generator.device).set_state(saved.cpu())  # type: ignore[attr-defined]
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the saved {part!r} is not the state of a {generator.device} generator: {reason}") from None
