"""What sparse layers have in common: values as a parameter, positions as buffers, and how they are made and changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tombola.sparse.geometry import Geometry
from tombola.sparse.operators import product
from tombola.sparse.positions import LIMIT, Positions, check, of_places, positions, random_places, to_places
from tombola.sparse.resized import watch


class SparseLayer(nn.Module):
    """A layer that stores and multiplies its non-zeros alone. A base class; float32 on the CPU.

    Attributes:
        values: (nnz,), the parameter: any optimiser keeps state for the non-zeros alone.
        bias: (outputs,), or None.
        pointers, columns: int32 buffers, where the values stand; they are in the state dict. Beside them are the
            same positions column by column, which are not.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    pointers: Tensor
    columns: Tensor
    entries: Tensor | None
    back_pointers: Tensor
    back_entries: Tensor
    order: Tensor
    relu = False  # whether a ReLU follows, which is then not a step of its own

    def __init__(
        self,
        geometry: Geometry,
        shape: tuple[int, ...],
        *,
        bias: bool,
        density: float | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.shape = torch.Size(shape)
        name = type(self).__name__
        if (geometry.inputs << geometry.bits) > LIMIT or (geometry.outputs << geometry.bits) > LIMIT:
            raise ValueError(f"{name}: {tuple(shape)} is too large for 32-bit positions")
        if (density is None) == (mask is None):
            raise ValueError(f"{name}: pass either density, a share of the weights, or mask, a bool tensor")
        if mask is not None:
            if mask.shape != self.shape or mask.dtype is not torch.bool:
                found = f"{mask.dtype} {tuple(mask.shape)}"
                raise ValueError(f"{name}: mask must be a bool tensor of shape {shape}, not {found}")
            count = int(mask.count_nonzero())
        else:
            assert density is not None
            if not 0 < density <= 1:
                raise ValueError(f"{name}: density must be above 0 and at most 1, not {density!r}")
            count = round(density * geometry.weights)
        if count > LIMIT:
            raise ValueError(f"{name}: {count:,} non-zeros are more than 32-bit positions can count ({LIMIT:,})")
        if mask is None:
            places = random_places(count, geometry.weights, generator)
        else:
            places = self._ordered(mask.cpu()).nonzero().squeeze(1)
        self.values = nn.Parameter(torch.empty(places.numel()))
        self.register_parameter("bias", nn.Parameter(torch.empty(geometry.outputs)) if bias else None)
        self.move(places)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw values and biases anew, uniform in ±1/√(the inputs that the output really has), as PyTorch's layers."""
        bound = self.fan_in().clamp(min=1).rsqrt()
        row_bound = bound.repeat_interleave(self.geometry.taps).repeat_interleave(self.pointers.diff())
        self.values.uniform_(-1, 1, generator=generator).mul_(row_bound)
        if self.bias is not None:
            self.bias.uniform_(-1, 1, generator=generator).mul_(bound)

    def dense_name(self, path: str) -> str:
        """What its weight is called in the dense model, for a layer that is at ``path`` in the sparse one."""
        return f"{path}.weight".removeprefix(".")

    # ---- positions

    @property
    def positions(self) -> Positions:
        """Where the values stand."""
        pointers, columns, entries, *back = map(self._buffers.__getitem__, Positions._fields)
        return Positions(pointers, columns, columns if entries is None else entries, *back)  # type: ignore[arg-type]

    @property
    def places(self) -> Tensor:
        """(nnz,) int64: the places of the values in the flattened weight, its taps before its input channels."""
        return to_places(self.pointers, self.columns, self.geometry)

    def move(self, places: Tensor) -> None:
        """Let the values, as they are, stand at other ``places``: ascending, distinct, as many as there are values.

        A backward pass through what the layer gave before would take its gradients at the new places; autograd refuses
        it, as it does after a step of the optimiser.
        """
        if places.numel() != self.values.numel():
            raise ValueError(f"move: {places.numel()} places for {self.values.numel()} values")
        with torch.no_grad():
            self.values[:0].zero_()  # changes none, but autograd has noted it
        pointers, columns = of_places(places, self.geometry)
        self._take(positions(pointers, columns, self.geometry))

    @torch.no_grad()
    def resize(self, values: Tensor) -> None:
        """Take ``values`` of another number; ``values`` stays the same parameter, without a gradient.

        It is for moves that change the number of connections: :meth:`move` must follow.
        """
        self.values.grad = None
        # a graph that is still alive, that of the last loss, keeps a node that would go on to expect gradients of the
        # old size; autograd makes a new one where the type has changed
        self.values.data = torch.empty(0, dtype=torch.float64)
        self.values.data = torch.empty_like(values)
        self.values.copy_(values)  # in place, so that autograd refuses a backward pass of before

    def _take(self, found: Positions) -> None:
        for name, tensor in found._asdict().items():
            if name == "entries" and not self.geometry.bits:
                tensor = None
            before = getattr(self, name, None)
            if before is not None and tensor is not None and before.shape == tensor.shape:
                before.copy_(tensor)  # in place: whoever holds the layer's buffers sees the move
            else:
                self.register_buffer(name, tensor, persistent=name in ("pointers", "columns"))

    def fan_in(self) -> Tensor:
        """(outputs,): the non-zeros of each output."""
        return self.pointers[:: self.geometry.taps].diff().float()

    @property
    def density(self) -> float:
        """Non-zeros / weights of the dense layer; 0 if it has none."""
        return self.values.numel() / max(self.geometry.weights, 1)

    def mask(self) -> Tensor:
        """Where there is a value: bool, of the dense layer's shape."""
        return self.scattered(torch.ones_like(self.places, dtype=torch.bool), self.places)

    def weight(self) -> Tensor:
        """A copy of the values in the dense layer's shape."""
        return self.scattered(self.values.detach(), self.places)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Take the values from a weight of the dense layer's shape."""
        places = self.places.to(weight.device)
        self.values.copy_(self._ordered(weight.detach()).index_select(0, places))

    @torch.no_grad()
    def take_parameters(self, layer: Any) -> None:
        """Values and bias of a dense layer, with its training mode and what of it is frozen."""
        self.set_weight(layer.weight)
        self.values.requires_grad_(layer.weight.requires_grad)
        if self.bias is not None:
            self.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
        self.train(layer.training)

    @torch.no_grad()
    def give_parameters(self, layer: Any) -> None:
        """The inverse; the dense layer goes to where this one is."""
        layer.to(self.values).weight.copy_(self.weight()).requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            layer.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        layer.train(self.training)

    def scattered(self, values: Tensor, places: Tensor) -> Tensor:
        """A weight of the dense layer's shape with ``values`` at ``places`` and 0 elsewhere."""
        outputs, channels, *kernel = self.shape
        flat = values.new_zeros(self.geometry.weights)
        flat.index_copy_(0, places, values)
        return flat.view(outputs, *kernel, channels).movedim(-1, 1).contiguous()

    def _ordered(self, weight: Tensor) -> Tensor:
        return weight.movedim(1, -1).reshape(-1)

    # ---- at work

    def _multiply(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, C, …) -> (N, O, …), to which ``added``, of any shape that goes with it, is added."""
        g, values, bias = self.geometry, self.values, self.bias
        x = computable(type(self).__name__, x, (values,) if bias is None else (values, bias))
        if added is not None and (added.shape != g.result_shape(x.shape) or added.dtype is not torch.float32):
            total = product(x, values, bias, self.positions, g) + added
            return total.relu() if self.relu else total
        return product(x, values, bias, self.positions, g, relu=self.relu, added=added)

    def _refused(self, x: Tensor, form: str) -> ValueError:
        wanted = f"{form} with {self.geometry.inputs} channels"
        return ValueError(f"{type(self).__name__}: the input must be {wanted}, not {tuple(x.shape)}")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        names = ("values", "pointers", "columns")
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        try:
            self._check(found)
        except ValueError as error:
            errors.append(f"{prefix}{error}")
            return
        if "columns" in found and found["columns"].shape != self.columns.shape:
            # of a layer that was pruned, or made with another density
            self.resize(self.values.new_zeros(found["columns"].numel()))
            self.columns = torch.empty_like(found["columns"])
            watch(self.values)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if "columns" in found:
            self._take(positions(self.pointers, self.columns, self.geometry))

    def _check(self, found: Mapping[str, Any]) -> None:
        """Raise ValueError unless all of these can be taken: some without the others would read foreign memory."""
        for name in ("values", "pointers", "columns"):
            if name not in found and found.keys() - {"values"}:
                raise ValueError(f"{name}: missing, without which positions mean nothing")
            if name in found and not isinstance(found[name], Tensor):
                raise ValueError(f"{name}: must be a tensor, not {type(found[name]).__name__}")
        if "columns" in found:
            check(found["pointers"], found["columns"], self.geometry)
        if "values" in found:
            shape = found.get("columns", self.columns).shape
            if found["values"].shape != shape:
                raise ValueError(f"values: size mismatch: {tuple(found['values'].shape)}, but {tuple(shape)} positions")

    def extra_repr(self) -> str:
        """Shape and density."""
        return f"{tuple(self.shape)}, density={self.density:.4g}, bias={self.bias is not None}"


def computable(name: str, x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``x`` as a layer of that ``name`` can compute with it; under autocast it becomes float32.

    Raises:
        RuntimeError: it, or one of the layer's parameters, is not on the CPU.
        TypeError: one of them is not float32.
    """
    for parameter in parameters:
        if not parameter.is_cpu:
            raise _elsewhere(name, parameter.device)
        if parameter.dtype is not torch.float32:
            raise TypeError(f"{name} computes in float32; it has {parameter.dtype} values or biases")
    if not x.is_cpu:
        raise _elsewhere(name, x.device)
    if torch.is_autocast_enabled("cpu"):
        x = x.float()
    if x.dtype is not torch.float32:
        raise TypeError(f"{name} computes in float32; it has a {x.dtype} input")
    return x


def _elsewhere(name: str, device: torch.device) -> RuntimeError:
    return RuntimeError(
        f"{name} computes on the CPU alone, not on {device.type}; its to_dense() makes a dense layer, which computes "
        "there, or move it back with .cpu()"
    )
