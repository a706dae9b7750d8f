"""A gated recurrent unit that keeps the non-zeros of its weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tombola.sparse.geometry import Geometry
from tombola.sparse.layer import SparseLayer, computable
from tombola.sparse.recurrence import Weight, recurrence


class SparseWeight(SparseLayer):
    """One of several weights of a layer, which multiplies with it itself; the biases are the layer's, too."""

    def __init__(
        self, shape: tuple[int, int], *, density: float | None, mask: Tensor | None, generator: torch.Generator | None
    ) -> None:
        geometry = Geometry(shape[1], shape[0])
        super().__init__(geometry, shape, bias=False, density=density, mask=mask, generator=generator)

    def dense_name(self, path: str) -> str:
        """It is called as the dense layer's weight is."""
        return path


class SparseGRU(nn.Module):
    """``nn.GRU`` whose memory and arithmetic, in training and inference, follow the non-zeros of its weights.

    Each weight of the dense layer is a sparse layer of the same name, and biases are parameters as they were; so the
    state dict has ``weight_ih_l0.values``, ``….pointers`` and ``….columns`` in the place of ``weight_ih_l0``, and masks
    name its connections ``weight_ih_l0``, as in the dense layer.

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers, each on the outputs of the one before.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (N, T, …) instead of (T, N, …).
        dropout: share of the outputs of each layer but the last that is cleared in training.
        bidirectional: whether each layer also goes through the sequence from its end.
        density: share of each weight that is there, at random places; exactly ``round(density · weights)``.
        masks: instead, name of the weight as in ``nn.GRU`` -> bool tensor of its shape: which of it is there.
        generator: draws places and values.

    Input: (T, N, input_size), or (T, input_size) without a batch, float32 on the CPU; and the first states,
    (num_layers · directions, N, hidden_size), 0 if there are none. Output: (T, N, directions · hidden_size), and the
    last states. In memory each step lies with the batch innermost; an input that does so already, as from another
    sparse layer of the kind, is not copied.

    ``torch.compile`` breaks its graph here, as it does at ``nn.GRU``, and the layer runs as without it. It cannot be
    exported.

    Raises:
        ValueError: sizes, dropout or density out of range, or masks that do not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        density: float | None = None,
        masks: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            sizes = f"{input_size}, {hidden_size} and {num_layers}"
            raise ValueError(f"SparseGRU: input_size, hidden_size and num_layers must be at least 1, not {sizes}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"SparseGRU: dropout must be between 0 and 1, not {dropout!r}")
        if (density is None) == (masks is None):
            raise ValueError("SparseGRU: pass either density, a share of the weights, or masks, name -> bool tensor")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        shapes = {f"weight_{kind}_{cell}": shape for cell in self._cells() for kind, shape in self._shapes(cell)}
        if masks is not None:
            _check_masks(masks, shapes)
        for name, shape in shapes.items():
            mask = None if masks is None else masks[name]
            self.add_module(name, SparseWeight(shape, density=density, mask=mask, generator=generator))
            if bias:
                self.register_parameter(name.replace("weight", "bias"), nn.Parameter(torch.empty(shape[0])))
        self.reset_parameters(generator)

    def _cells(self) -> list[str]:
        """The names of layers and directions, in the order of the states."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def _shapes(self, cell: str) -> Iterator[tuple[str, tuple[int, int]]]:
        below = self.hidden_size * (1 + self.bidirectional)
        yield "ih", (3 * self.hidden_size, self.input_size if cell.startswith("l0") else below)
        yield "hh", (3 * self.hidden_size, self.hidden_size)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw everything anew, uniform in ±1/√hidden_size as in ``nn.GRU``; values by as much more as inputs are
        missing in their row, so that what arrives at a gate varies as in the dense layer."""
        for name, weight in self.weights().items():
            weight.reset_parameters(generator)  # ± 1/√(the inputs that are there)
            weight.values.mul_(math.sqrt(weight.shape[1] / self.hidden_size))
            if self.bias:
                bound = 1 / math.sqrt(self.hidden_size)
                self.get_parameter(name.replace("weight", "bias")).uniform_(-bound, bound, generator=generator)

    def weights(self) -> dict[str, SparseWeight]:
        """The sparse weights by their names."""
        return {name: module for name, module in self.named_children() if isinstance(module, SparseWeight)}

    @property
    def density(self) -> float:
        """Non-zeros / weights of the dense layer."""
        weights = self.weights().values()
        return sum(weight.values.numel() for weight in weights) / sum(weight.geometry.weights for weight in weights)

    def flatten_parameters(self) -> None:
        """Nothing to do; models call it on ``nn.GRU``."""

    # ---- from the dense layer and back

    @classmethod
    def from_dense(cls, layer: nn.GRU, masks: Mapping[str, Tensor] | None = None) -> SparseGRU:
        """The same layer with the weights under ``masks`` alone; of one without a mask those that are not zero."""
        dense = {name: weight.detach() for name, weight in layer.named_parameters() if name.startswith("weight")}
        masks = {name: weight != 0 for name, weight in dense.items()} | dict(masks or {})
        sizes = (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first)
        sparse = cls(*sizes, layer.dropout, layer.bidirectional, masks=masks)
        for name, parameter, theirs in sparse._pairs(layer):
            if name in dense:
                sparse.weights()[name].set_weight(theirs)
            else:
                parameter.data.copy_(theirs)
            parameter.requires_grad_(theirs.requires_grad)
        return sparse.train(layer.training)

    @torch.no_grad()
    def to_dense(self) -> nn.GRU:
        """The same layer with zeros for the missing weights."""
        sizes = (self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first)
        layer = nn.GRU(*sizes, self.dropout, self.bidirectional).to(next(self.parameters()))
        weights = self.weights()
        for name, parameter, theirs in self._pairs(layer):
            theirs.copy_(weights[name].weight() if name in weights else parameter)
            theirs.requires_grad_(parameter.requires_grad)
        return layer.train(self.training)

    def _pairs(self, layer: nn.GRU) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name in the dense layer, parameter here, and there."""
        weights = self.weights()
        for name, theirs in layer.named_parameters():
            yield name, weights[name].values if name in weights else self.get_parameter(name), theirs

    # ---- at work

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs of all steps, and the last states."""
        input, hx = self._checked(input, hx)
        alone = input.ndim == 2
        batch_first = self.batch_first and not alone
        x = input.unsqueeze(1) if alone else input
        x = x.permute((1, 2, 0) if batch_first else (0, 2, 1)).contiguous()  # (T, input_size, N)
        cells, ends = self._cells(), []
        hx = x.new_zeros(len(cells), x.shape[2], self.hidden_size) if hx is None else hx.unsqueeze(1) if alone else hx
        starts = iter(zip(cells, hx, strict=True))
        directions = 1 + self.bidirectional
        for layer in range(self.num_layers):
            outputs = []
            for cell, start in islice(starts, directions):
                back = cell.endswith("_reverse")
                weights = self._weight(f"ih_{cell}"), self._weight(f"hh_{cell}")
                states = recurrence(x.flip(0) if back else x, start.T, *weights)
                ends.append(states[-1].T)
                outputs.append(states.flip(0) if back else states)
            x = torch.cat(outputs, 1) if self.bidirectional else outputs[0]
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        output, end = x.permute((2, 0, 1) if batch_first else (0, 2, 1)), torch.stack(ends)
        return (output.squeeze(1), end.squeeze(1)) if alone else (output, end)

    def _weight(self, name: str) -> Weight:
        weight = self.weights()[f"weight_{name}"]
        bias = self.get_parameter(f"bias_{name}") if self.bias else None
        return Weight(weight.values, bias, weight.positions, weight.geometry)

    def _checked(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"SparseGRU takes a tensor, not {type(x).__name__}; pad a packed sequence with "
                "torch.nn.utils.rnn.pad_packed_sequence, and mask what follows its ends"
            )
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "SparseGRU: torch.export cannot follow it; export the dense layer, which to_dense() makes"
            )
        x = computable("SparseGRU", x, self.parameters())
        form = "(N, T, input_size)" if self.batch_first else "(T, N, input_size)"
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            wanted = f"{form} or (T, input_size) with {self.input_size} features"
            raise ValueError(f"SparseGRU: the input must be {wanted}, not {tuple(x.shape)}")
        steps = x.shape[1] if x.ndim == 3 and self.batch_first else x.shape[0]
        if not steps:
            raise ValueError(f"SparseGRU: the input must have at least one step, but it is {tuple(x.shape)}")
        if hx is None:
            return x, None
        hx = computable("SparseGRU", hx, ())
        batch = () if x.ndim == 2 else (x.shape[0 if self.batch_first else 1],)
        wanted_states = (len(self._cells()), *batch, self.hidden_size)
        if hx.shape != wanted_states:
            raise ValueError(f"SparseGRU: the first states must be {wanted_states}, not {tuple(hx.shape)}")
        return x, hx

    def extra_repr(self) -> str:
        """Sizes and density, and what is not as usual."""
        options = ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False)
        said = [f"{name}={getattr(self, name)}" for name, usual in options if getattr(self, name) != usual]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", f"density={self.density:.4g}", *said])


def _check_masks(masks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    if unknown := [name for name in masks if name not in shapes]:
        raise ValueError(f"SparseGRU: there is no weight {unknown[0]!r}; it has {', '.join(shapes)}")
    for name, shape in shapes.items():
        mask = masks.get(name)
        if mask is None or mask.dtype is not torch.bool or mask.shape != shape:
            found = "missing" if mask is None else f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"SparseGRU: the mask of {name!r} must be a bool tensor of shape {shape}; it is {found}")
