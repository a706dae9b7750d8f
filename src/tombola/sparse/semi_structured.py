"""2:4 for GPUs that multiply it faster: at most two of any four neighbouring inputs of an output are kept.

A file holds each weight that fits as half the values and two bits a value for where they stand: in float16 9/16 of the
bytes. On a GPU they become PyTorch's semi-structured tensors (``torch.sparse.to_sparse_semi_structured``; compute
capability 8.0 or newer), elsewhere plain weights with zeros. Mishra et al., arXiv 2104.08378.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tombola.selection import unwrapped
from tombola.sparse import sealed

FORMAT = "tombola-semi-structured-1"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MULTIPLES = 32, 64
"""Of outputs and inputs, for both of the libraries that PyTorch multiplies with (CUTLASS asks for the most)."""


def reasons(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Masked parameter -> why it has to stay dense; None for those that can be semi-structured."""
    plain = unwrapped(model)
    return {name: _reason(plain.get_submodule(name.rpartition(".")[0]), mask) for name, mask in masks.items()}


def _reason(layer: nn.Module, mask: Tensor) -> str | None:
    outputs, inputs = MULTIPLES
    if type(layer) is not nn.Linear:
        return f"a {type(layer).__name__}; PyTorch has semi-structured weights for Linear layers"
    if mask.shape[0] % outputs or mask.shape[1] % inputs:
        return f"{mask.shape[0]}×{mask.shape[1]} is not a multiple of {outputs}×{inputs}"
    if bool((mask.reshape(-1, 4).sum(1) > 2).any()):
        return "it keeps more than two of four neighbouring inputs"
    return None


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) with at most two non-zeros in each four inputs -> values (outputs, inputs / 2), and where they
    stand: uint8 (outputs, inputs / 8), the two places of four inputs in four bits, the first four in the lower ones.

    Raises:
        ValueError: more than two of four neighbouring inputs are not zero.
    """
    fours = weight.detach().unflatten(1, (-1, 4))
    kept = fours != 0
    if bool((kept.sum(-1) > 2).any()):
        raise ValueError("compress: more than two of four neighbouring inputs are not zero")
    places = (
        (~kept).byte().argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    )  # of fewer, the first zeros come along
    bits = (places[..., 0] | places[..., 1] << 2).byte().unflatten(1, (-1, 2))
    return fours.gather(-1, places).flatten(1), bits[..., 0] | bits[..., 1] << 4


def expand(values: Tensor, positions: Tensor) -> Tensor:
    """The inverse of :func:`compress`.

    Raises:
        ValueError: the shapes do not fit each other, or two values have one place.
    """
    if values.ndim != 2 or positions.dtype != torch.uint8 or positions.shape != (len(values), values.shape[1] / 4):
        raise ValueError(f"positions {tuple(positions.shape)} do not fit values {tuple(values.shape)}")
    bits = torch.stack([positions & 15, positions >> 4], -1).flatten(1)
    places = torch.stack([bits & 3, bits >> 2], -1).long()
    if bool((places[..., 0] >= places[..., 1]).any()):
        raise ValueError("two values have one place")
    fours = values.new_zeros(*bits.shape, 4)
    return fours.scatter_(-1, places, values.unflatten(1, (-1, 2))).flatten(1)


def save(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, Any] | None = None,
) -> dict[str, str | None]:
    """Write ``model`` to one file, atomically: what fits 2:4 at half the values, all else dense.

    Args:
        model: with weights that are zero where ``masks`` are False.
        masks: parameter name -> bool tensor.
        path: the file.
        dtype: of all floating-point values in it: float16 or bfloat16.
        about: plain data to keep with it.

    Returns:
        What :func:`reasons` says.

    Raises:
        ValueError: no weight fits 2:4, another dtype, or a value that is not finite, or not in that dtype.
        OSError: the file cannot be written; an older one is then as it was.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be torch.float16 or torch.bfloat16, not {dtype}")
    found = reasons(model, masks)
    fit = [name for name, reason in found.items() if reason is None]
    if not fit:
        why = "; ".join(f"{name}: {reason}" for name, reason in found.items())
        raise ValueError(f"no weight fits 2:4 ({why}); train with pattern=NM(2, 4), --pattern 2:4")
    plain, tensors = unwrapped(model), {}
    state = {n: t.detach().cpu().to(dtype if t.is_floating_point() else t.dtype) for n, t in plain.state_dict().items()}
    sealed.check_numbers(state, plain)
    for name, stored in state.items():
        if name in fit:
            kept = stored.masked_fill(~masks[name].cpu(), 0)
            tensors[f"{name}.values"], tensors[f"{name}.positions"] = compress(kept)
        else:
            tensors[name] = stored.clone(memory_format=torch.contiguous_format)
    said = {"weights": fit, "dtype": str(dtype).removeprefix("torch."), "about": dict(about or {})}
    sealed.write(Path(path), FORMAT, said, tensors)
    return found


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """The model in a file of :func:`save`, for inference, on the device of ``model``. Nothing in it is ever executed.

    Args:
        path: the file.
        model: one of the same architecture; it stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of :func:`save`, it is damaged, or it is of another architecture.
    """
    said, tensors = sealed.read(Path(path), FORMAT, ("weights", "dtype", "about"), what="semi-structured model")
    try:
        weights, dtype = list(said["weights"]), DTYPES[said["dtype"]]
        tensors |= {name: expand(tensors.pop(f"{name}.values"), tensors.pop(f"{name}.positions")) for name in weights}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a semi-structured model: {reason}") from error
    made = copy.deepcopy(unwrapped(model)).to(dtype).eval().requires_grad_(False)
    try:
        made.load_state_dict(tensors)
        sealed.check_numbers(tensors, made)
        layers = [cast(nn.Linear, made.get_submodule(name.removesuffix(".weight"))) for name in weights]
    except (AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit this {type(made).__name__}: {reason}") from error
    for layer in layers:
        if layer.weight.is_cuda:
            tensor = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(tensor, requires_grad=False)
    return made
