"""Sparse layers as modules: how they begin, what they store, and that all that PyTorch does to modules works."""

from __future__ import annotations

import copy
import io
import math
import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import MASKS, by_row, draws, mask_of
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.checkpoint import checkpoint

import tombola
from tombola.sparse import SparseConv1d, SparseConv2d, SparseGRU, SparseLayer, SparseLinear, operators
from tombola.sparse.around import make_aware
from tombola.sparse.layout import outside
from tombola.sparse.positions import positions
from tombola.sparse.resized import _resized

Make = Callable[..., SparseLayer]
KINDS: dict[str, tuple[Make, tuple[int, ...]]] = {  # how to make one, and an input
    "linear": (lambda **kw: SparseLinear(14, 10, **kw), (6, 14)),
    "no bias": (lambda **kw: SparseLinear(14, 10, False, **kw), (6, 3, 14)),
    "conv1d": (lambda **kw: SparseConv1d(6, 4, 3, 2, 1, groups=2, **kw), (3, 6, 9)),
    "conv2d": (lambda **kw: SparseConv2d(6, 8, (3, 2), (1, 2), (1, 0), (2, 1), **kw), (3, 6, 7, 8)),
    "1 × 1": (lambda **kw: SparseConv2d(6, 8, 1, **kw), (3, 6, 5, 4)),
    "depthwise": (lambda **kw: SparseConv2d(6, 6, 3, groups=6, **kw), (3, 6, 5, 4)),
}
each_kind = pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS.keys())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Everything in it, also what is not in its state dict."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def in_order(layer: SparseLayer) -> None:
    """The positions by row and by column are of one and the same structure."""
    pointers, columns = layer.pointers, layer.columns
    for mine, anew in zip(layer.positions, positions(pointers, columns, layer.geometry), strict=True):
        assert mine is anew is None or torch.equal(mine, anew)


def network() -> nn.Sequential:
    """Sparse and dense layers, all of whose kinds are in it."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        SparseConv2d(6, 8, 3, stride=2, padding=1, density=0.3, generator=draws(0)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(2),
        SparseConv1d(8, 4, 3, density=0.5, generator=draws(1)),
        nn.Flatten(),
        SparseLinear(4 * 14, 9, density=0.2, generator=draws(2)),
        nn.ReLU(),
        nn.Linear(9, 5),
    )


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=draws(9))


def trained_once(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients."""
    x = x.detach().requires_grad_()
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return {"output": y.detach(), "input": x.grad} | {n: p.grad.clone() for n, p in model.named_parameters()}


# ---- how many there are, and where


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_min=True), st.integers(0, 2**20))
def test_as_many_as_the_density_says(inputs: int, outputs: int, density: float, seed: int) -> None:
    """Exactly ``round(density · weights)``, each at a place of its own."""
    layer = SparseLinear(inputs, outputs, density=density, generator=draws(seed))
    count = round(density * inputs * outputs)
    assert layer.values.numel() == count
    assert int(layer.mask().sum()) == count
    assert layer.density == count / (inputs * outputs)
    assert torch.equal(layer.places, layer.mask().flatten().nonzero().squeeze(1))


@each_kind
@pytest.mark.parametrize("density", [0.001, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_counts_in_every_kind(make: Make, shape: tuple[int, ...], density: float) -> None:
    layer = make(density=density)
    assert layer.values.numel() == round(density * layer.to_dense().weight.numel()) == int(layer.mask().sum())
    assert layer.mask().shape == layer.weight().shape == layer.to_dense().weight.shape
    in_order(layer)


def test_places_are_drawn_evenly() -> None:
    """Every place as often as any other, below and above half."""
    for density in (0.25, 0.75):
        hits = sum(SparseLinear(5, 4, density=density, generator=draws(seed)).mask().int() for seed in range(800))
        assert 800 * density - 75 < int(hits.min()) < int(hits.max()) < 800 * density + 75  # six standard deviations


def test_a_generator_decides_everything() -> None:
    """The same one gives the same layer; without one it is PyTorch's own."""
    for make in (lambda draw: SparseConv2d(4, 4, 3, density=0.3, generator=draw),):
        assert same(state_of(make(draws(1))), state_of(make(draws(1))))
        assert not same(state_of(make(draws(1))), state_of(make(draws(2))))
        torch.manual_seed(3)
        first = make(None)
        torch.manual_seed(3)
        assert same(state_of(first), state_of(make(None)))


@each_kind
@pytest.mark.parametrize("kind", MASKS)
def test_mask_and_places(make: Make, shape: tuple[int, ...], kind: str) -> None:
    """The values are where the mask is; ``places`` count taps before input channels."""
    dense = make(density=1.0).to_dense().weight
    mask = mask_of(kind, tuple(dense.shape), draws(4))
    layer = make(mask=mask)
    in_order(layer)
    assert torch.equal(layer.mask(), mask)
    assert torch.equal(layer.places, mask.movedim(1, -1).flatten().nonzero().squeeze(1))
    assert torch.equal(layer.weight() != 0, mask)
    assert torch.equal(layer.weight().movedim(1, -1).flatten()[layer.places], layer.values.detach())
    assert torch.equal(layer.fan_in(), mask.flatten(1).sum(1).float())
    layer(torch.ones(shape))


def test_mask_and_weight_are_copies() -> None:
    """What is done to them does not reach the layer."""
    layer = SparseLinear(4, 4, density=0.5)
    before = state_of(layer)
    layer.weight().fill_(7)
    layer.mask().fill_(True)
    layer.places.fill_(0)
    assert same(before, state_of(layer))
    assert not layer.weight().requires_grad


@each_kind
def test_values_are_drawn_by_the_fan_in_of_their_output(make: Make, shape: tuple[int, ...]) -> None:
    """Uniform in ±1/√(inputs that the output has), biases too; an output without any has a bias in ±1."""
    mask = torch.rand(make(density=1.0).to_dense().weight.shape, generator=draws(0)) < 0.4
    mask[0], mask[1] = True, False
    layer = make(mask=mask)
    bounds = mask.flatten(1).sum(1).clamp(min=1).rsqrt()
    weights, biases = [], []
    for seed in range(60):
        layer.reset_parameters(draws(seed))
        weights.append(layer.weight().abs())
        biases.append(torch.zeros(len(mask)) if layer.bias is None else layer.bias.detach().abs())
    for output, bound in enumerate(bounds.tolist()):
        drawn = torch.stack(weights)[:, output][:, mask[output]]
        assert drawn.numel() == 0 or 0.9 * bound < float(drawn.max()) <= bound * (1 + 1e-6)
        if layer.bias is not None:
            assert 0.85 * bound < float(torch.stack(biases)[:, output].max()) <= bound * (1 + 1e-6)
    again = copy.deepcopy(layer)
    again.reset_parameters(draws(59))
    assert same(state_of(layer), state_of(again))


# ---- from dense, to dense


@pytest.mark.parametrize("given_mask", [True, False])
@pytest.mark.parametrize(
    ("dense", "kind"),
    [
        (nn.Linear(7, 5), SparseLinear),
        (nn.Linear(7, 5, bias=False), SparseLinear),
        (nn.Conv1d(6, 4, 3, 2, 1, 2, groups=2), SparseConv1d),
        (nn.Conv1d(6, 4, 3, padding="same", dilation=2), SparseConv1d),
        (nn.Conv2d(6, 9, (3, 2), (1, 2), (1, 0), (2, 1), groups=3, bias=False), SparseConv2d),
        (nn.Conv2d(6, 9, (3, 5), padding="same"), SparseConv2d),
        (nn.Conv2d(6, 9, 3, padding="valid"), SparseConv2d),
    ],
    ids=str,
)
def test_from_dense_and_back(dense: Any, kind: Any, given_mask: bool) -> None:
    """The weights under the mask, or else those that are not zero, the bias and every setting come back."""
    mask = torch.rand(dense.weight.shape, generator=draws(0)) < 0.4
    dense = copy.deepcopy(dense).eval()
    dense.weight.requires_grad_(False)
    pruned = copy.deepcopy(dense)
    pruned.weight.mul_(mask)
    sparse = kind.from_dense(dense, mask) if given_mask else kind.from_dense(pruned)
    assert torch.equal(sparse.mask(), mask)
    assert torch.equal(sparse.weight(), pruned.weight)
    assert not sparse.values.requires_grad
    assert not sparse.training
    back = sparse.to_dense()
    assert type(back) is type(dense)
    assert torch.equal(back.weight, pruned.weight)
    assert not back.weight.requires_grad
    assert not back.training
    assert (back.bias is None) == (dense.bias is None)
    assert dense.bias is None or (torch.equal(back.bias, dense.bias) and back.bias.requires_grad)
    x = torch.randn((3, 7) if kind is SparseLinear else (3, 6, *[9] * (dense.weight.ndim - 2)))
    torch.testing.assert_close(sparse(x), pruned(x))
    torch.testing.assert_close(back(x), pruned(x))
    with torch.no_grad():
        sparse.set_weight(torch.ones_like(dense.weight))  # what has no place is left out
    assert torch.equal(sparse.weight(), mask.float())


def test_a_stored_zero_stays_a_place() -> None:
    """Values may become zero; they keep their place, and a gradient."""
    layer = SparseLinear(3, 2, mask=torch.ones(2, 3, dtype=torch.bool))
    with torch.no_grad():
        layer.values.zero_()
    assert layer.mask().all()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.values.grad.tolist() == [1.0] * 6


# ---- moves


@each_kind
def test_a_move(make: Make, shape: tuple[int, ...]) -> None:
    """The same values stand at other places: outputs and gradients are those of a layer made so, and the tensors of
    the positions are the same tensors as before."""
    mask = mask_of("many", tuple(make(density=1.0).weight().shape), draws(1))
    layer, other = make(mask=mask), make(mask=mask.flip(0, 1))
    assert layer.values.numel() == other.values.numel()
    assert not torch.equal(layer.places, other.places)
    values, buffers = layer.values.detach().clone(), dict(layer.named_buffers())
    layer(torch.ones(shape))  # what was computed before is of no account
    layer.move(other.places)
    in_order(layer)
    assert torch.equal(layer.values, values)
    assert torch.equal(layer.mask(), other.mask())
    assert all(tensor is buffers[name] for name, tensor in layer.named_buffers())
    other.load_state_dict(layer.state_dict())
    x = torch.randn(shape)
    assert same(trained_once(layer, x), trained_once(other, x))


# ---- copies and files


@each_kind
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(make: Make, shape: tuple[int, ...], way: str) -> None:
    """They compute the same bits, and share no memory."""
    layer = make(density=0.4)
    if way == "deepcopy":
        other = copy.deepcopy(layer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert same(state_of(layer), state_of(other))
    assert repr(layer) == repr(other)
    x = torch.randn(shape)
    before = trained_once(layer, x)
    assert same(before, trained_once(other, x))
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    assert same(before, trained_once(layer, x))


@each_kind
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(make: Make, shape: tuple[int, ...], assign: bool, tmp_path: Path) -> None:
    """It holds values, bias and positions, once each; a layer with others takes them all and computes the same bits."""
    layer, other = (make(density=0.4, generator=draws(seed)) for seed in (1, 2))
    torch.save(layer.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert [*state] == ["values", *(["bias"] if layer.bias is not None else []), "pointers", "columns"]
    assert sum(tensor.numel() for tensor in state.values()) < 2 * layer.values.numel() + len(layer.pointers) + 11
    x = torch.randn(shape)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(state, assign=assign)
    in_order(other)
    assert same(state_of(layer), state_of(other))
    assert same(trained_once(layer, x), trained_once(other, x))


def test_state_dict_of_a_model() -> None:
    """With layers of other kinds between."""
    torch.manual_seed(1)
    one, other = network(), network()
    other[2].reset_parameters()
    other[6].move(torch.arange(other[6].values.numel()))
    assert not torch.equal(one(images()), other(images()))
    other.load_state_dict(one.state_dict())
    assert same(state_of(one), state_of(other))
    assert same(trained_once(one, images()), trained_once(other, images()))


# ---- damaged files


def two() -> nn.Sequential:
    """A dense layer, and a sparse one whose positions are simple: each output has the first two inputs."""
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, :2] = True
    return nn.Sequential(nn.Linear(4, 4), SparseLinear(4, 3, mask=mask))


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "position too large": ({"columns": ints(0, 1, 0, 4, 0, 1)}, r"1\.columns: a position is outside"),
    "position below 0": ({"columns": ints(0, 1, -1, 1, 0, 1)}, r"1\.columns: a position is outside"),
    "position far outside": ({"columns": ints(0, 1, 0, 2**31 - 1, 0, 1)}, r"1\.columns: a position is outside"),
    "position twice": ({"columns": ints(0, 1, 1, 1, 0, 1)}, r"1\.columns: .*twice"),
    "out of order": ({"columns": ints(0, 1, 1, 0, 0, 1)}, r"1\.columns: .*order"),
    "columns of 64 bits": ({"columns": ints(0, 1, 0, 1, 0, 1).long()}, r"1\.columns: must be .*int32"),
    "columns of floats": ({"columns": ints(0, 1, 0, 1, 0, 1).float()}, r"1\.columns: must be .*int32"),
    "columns in two dimensions": ({"columns": ints(0, 1, 0, 1, 0, 1)[None]}, r"1\.columns: must be one-dim"),
    "pointers of 64 bits": ({"pointers": ints(0, 2, 4, 6).long()}, r"1\.pointers: must be .*int32"),
    "pointers descend": ({"pointers": ints(0, 4, 2, 6)}, r"1\.pointers: do not share"),
    "pointers ascend by overflow": ({"pointers": ints(0, 2**31 - 1, -2, 6)}, r"1\.pointers: do not share"),
    "pointers begin late": ({"pointers": ints(1, 2, 4, 6)}, r"1\.pointers: do not share"),
    "pointers end early": ({"pointers": ints(0, 2, 4, 5)}, r"1\.pointers: do not share"),
    "pointers end late": ({"pointers": ints(0, 2, 4, 7)}, r"1\.pointers: do not share"),
    "pointers too few": ({"pointers": ints(0, 2, 6)}, r"1\.pointers: do not share"),
    "no pointers at all": ({"pointers": ints()}, r"1\.pointers: do not share"),
    "no tensor": ({"columns": [0, 1, 0, 1, 0, 1]}, r"1\.columns"),
    "columns missing": ({"columns": None}, r"1\.columns"),
    "pointers missing": ({"pointers": None, "columns": ints(2, 3, 2, 3, 2, 3)}, r"1\.pointers"),
    "values missing": ({"values": None, "columns": ints(2, 3, 2, 3, 2, 3)}, r"1\.values"),
    "fewer values": ({"values": torch.ones(5), "columns": ints(2, 3, 2, 3, 2, 3)}, r"1\.values"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused(damage: dict[str, Any], message: str) -> None:
    """With an error that names the layer, which stays as it was: positions that do not fit would be read as addresses.

    Also where keys may be missing: half of the positions is of no use.
    """
    model = two()
    state = model.state_dict()
    for name, tensor in damage.items():
        state.pop(f"1.{name}")
        if tensor is not None:
            state[f"1.{name}"] = tensor
    before, x = state_of(model[1]), torch.randn(5, 4)
    y = model[1](x)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state, strict=False)
    assert same(before, state_of(model[1]))
    assert torch.equal(model[1](x), y)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_file_with_another_number_of_non_zeros(density: float) -> None:
    """Of a layer that was pruned since, or made otherwise: the parameter stays the same object, for its optimiser."""
    model, other = two(), nn.Sequential(nn.Linear(4, 4), SparseLinear(4, 3, density=density))
    values = model[1].values
    model.load_state_dict(other.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(model(x), other(x))
    assert model[1].values is values
    assert values.numel() == round(12 * density)
    model(x).sum().backward()
    assert values.grad is not None
    assert values.grad.shape == values.shape


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("fused", [False, True])
def test_no_optimiser_steps_with_state_of_the_old_number(fused: bool, density: float) -> None:
    """Fused ones would read beyond its end."""
    layer, other = SparseLinear(64, 64, density=0.5), SparseLinear(64, 64, density=density)
    optimizers = [torch.optim.Adam(part.parameters(), fused=fused) for part in (layer, other)]
    for part, optimizer in zip((layer, other), optimizers, strict=True):
        part(torch.randn(3, 64)).sum().backward()
        optimizer.step()
    layer.load_state_dict(other.state_dict())
    layer(torch.randn(3, 64)).sum().backward()
    optimizers[1].step()  # it has nothing to do with that
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"'exp_avg' of a sparse layer is for 2048 values, but it was loaded with"
        ):
            optimizers[0].step()
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    optimizers[0].step()
    assert id(layer.values) not in _resized


def test_moving_to_another_number_of_places_is_refused() -> None:
    layer = SparseLinear(4, 3, density=0.5)
    before, x = state_of(layer), torch.randn(5, 4)
    y = layer(x)
    with pytest.raises(ValueError, match="2 places for 6 values"):
        layer.move(torch.tensor([0, 1]))
    assert same(before, state_of(layer))
    assert torch.equal(layer(x), y)


def test_a_file_with_damage_elsewhere() -> None:
    """An error in another layer leaves no layer with half of its positions new."""
    model, other = two(), two()
    other[1].move(torch.tensor([0, 3, 5, 7, 10, 11]))
    state = other.state_dict()
    state["0.weight"] = torch.ones(9, 9)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        model.load_state_dict(state)
    in_order(model[1])
    x = torch.randn(5, 4)
    torch.testing.assert_close(model[1](x), model[1].to_dense()(x))


def test_values_without_positions() -> None:
    """They alone may be loaded where keys may be missing: the positions stay."""
    model = two()
    before = state_of(model[1])
    model.load_state_dict({"1.values": torch.arange(6.0)}, strict=False)
    assert same(before | {"values": torch.arange(6.0)}, state_of(model[1]))
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.columns"):
        model.load_state_dict({"1.values": torch.arange(6.0)})


def test_whole_groups_of_a_convolution() -> None:
    """A position in another group's channels is refused."""
    layer = SparseConv2d(4, 4, 1, groups=2, density=1.0)
    state = layer.state_dict()
    assert state["columns"].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    with pytest.raises(RuntimeError, match=r"columns: a position is outside"):
        layer.load_state_dict(state | {"columns": ints(0, 2, 0, 1, 2, 3, 2, 3)})


# ---- what PyTorch does to modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled() -> None:
    """As one graph, with the way back, and with another size of batch: the same numbers as without."""
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for count in (6, 3):
        expected, found = trained_once(model, images(count)), trained_once(compiled, images(count))
        for name, tensor in expected.items():
            torch.testing.assert_close(found["_orig_mod." + name if name in state_of(model) else name], tensor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported() -> None:
    """For any size of batch: the same numbers as the module."""
    model = network().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},)).module()
    for count in (6, 11):
        torch.testing.assert_close(exported(images(count)), model(images(count)))


@pytest.mark.parametrize("relu", [False, True])
def test_operators_are_what_they_declare(relu: bool) -> None:
    """PyTorch's own examination: schema, shapes and strides without data, autograd, tracing. And they compute what
    layers compute that are not compiled."""
    layer = SparseConv2d(2, 3, (1, 2), padding=(0, 1), density=0.6)
    g, p = layer.geometry, layer.positions
    sizes = [g.inputs, g.outputs, *g.kernel, *g.stride, *g.padding, *g.dilation]
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    back = p.back_pointers, p.back_entries, p.order
    torch.library.opcheck(
        operators.sparse_product, (x, layer.values, layer.bias, p.pointers, p.entries, *back, sizes, relu)
    )
    gradient, values = torch.randn(3, 3, 5, 5), layer.values.detach()
    wanted = [x, layer.values, layer.bias]
    declared = operators.sparse_product(*wanted, p.pointers, p.entries, *back, sizes, relu)
    direct = operators.product(outside(x), layer.values, layer.bias, p, g, relu=relu).movedim(0, -1)
    assert torch.equal(declared, direct)
    for one, other in zip(*(torch.autograd.grad(y, wanted, gradient) for y in (declared, direct)), strict=True):
        assert torch.equal(one, other)
    torch.library.opcheck(operators.sparse_input_gradient, (gradient, values, *back, sizes, 3, 4))
    torch.library.opcheck(operators.sparse_value_gradient, (gradient, x.detach(), p.pointers, p.entries, sizes))
    torch.library.opcheck(operators.sparse_relu_gradient, (gradient, declared.detach()))


class InFloat32(nn.Module):
    """A dense layer that stays out of autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


def test_autocast() -> None:
    """In bfloat16 around a model: dense layers take part, sparse ones compute in float32 what they are given, and
    output and gradients are those of dense layers that do the same."""
    model = network()
    dense = copy.deepcopy(model)
    for place in (2, 6, 8):
        dense[place] = InFloat32(model[place].to_dense())
    given: list[torch.dtype] = []
    for place in (2, 6, 8):
        model[place].register_forward_hook(lambda module, inputs, output: given.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = trained_once(model, images()), trained_once(dense, images())
    assert given == [torch.float32] * 3
    assert found["output"].dtype is torch.bfloat16
    for place in (2, 6, 8):
        gradient = expected.pop(f"{place}.layer.weight")
        expected[f"{place}.values"] = by_row(model[place], gradient)
        expected[f"{place}.bias"] = expected.pop(f"{place}.layer.bias")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm() / tensor.norm()) < 0.01 or tensor.norm() < 1e-3, name
    full = trained_once(model, images())
    assert not torch.equal(full["output"], found["output"].float())  # it makes a difference


def test_checkpointed() -> None:
    """Activations that are computed again on the way back: the same bits."""
    model = network().eval()

    class Checkpointed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(model, x, use_reentrant=False)

    wrapped = Checkpointed()
    wrapped.model = model
    expected, found = trained_once(model, images()), trained_once(wrapped, images())
    assert same(expected, {name.removeprefix("model."): tensor for name, tensor in found.items()})


def elsewhere(tensor: Tensor) -> Tensor:
    """The same numbers in the middle of others, with gaps between them."""
    gaps = tensor.new_full((*(size + 2 for size in tensor.shape), 2), torch.nan)
    inner = gaps[tuple(slice(1, -1) for _ in tensor.shape)][..., 0]
    return inner.copy_(tensor.detach())


@pytest.mark.parametrize("moved", [Tensor.contiguous, lambda x: x.mT.contiguous().mT if x.ndim > 1 else x, elsewhere])
def test_what_is_saved_may_come_back_in_another_layout(moved: Callable[[Tensor], Tensor]) -> None:
    """As from hooks that keep it elsewhere meanwhile (``save_on_cpu``): the same gradients, to the bit."""
    relu = SparseConv2d(6, 8, 3, padding=1, density=0.4, generator=draws(0))
    relu.relu = True
    adding = SparseConv2d(8, 8, 1, density=0.4, generator=draws(1))
    flat = SparseLinear(8, 9, density=0.4, generator=draws(2))
    flat.relu = True
    state, norm = SparseGRU(9, 7, density=0.4), nn.BatchNorm2d(8)
    make_aware(norm)
    layers = nn.ModuleList([relu, adding, flat, state, norm])
    x = images(4).repeat(1, 2, 1, 1).requires_grad_()

    def gradients() -> list[Tensor]:
        y = relu(x)
        y = norm(adding(y, y)).amax((2, 3))
        y = state(flat(y).view(2, 2, 9))[0]
        weights = torch.arange(y.numel(), dtype=torch.float32).view(y.shape).cos()
        return [*torch.autograd.grad((y * weights).sum(), [x, *layers.parameters()])]

    wanted = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, moved):
        found = gradients()
    assert all(float(gradient.abs().sum()) > 0 for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1)])
def test_optimisers_keep_state_for_the_non_zeros(make: Any) -> None:
    """As many numbers as values; and they train: the loss falls."""
    model = nn.Sequential(SparseLinear(30, 40, density=0.1), nn.ReLU(), SparseLinear(40, 1, density=0.5))
    optimizer, x = make(model.parameters()), torch.randn(64, 30)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    states = [tensor for tensor in optimizer.state[model[0].values].values() if tensor.numel() != 1]
    assert states
    assert {tuple(tensor.shape) for tensor in states} == {(120,)}


@each_kind
def test_what_needs_no_gradient_gets_none(make: Make, shape: tuple[int, ...]) -> None:
    """Frozen values or biases, or an input that needs none: the other gradients are the same bits as ever."""
    layer, data = make(density=0.4), torch.randn(shape)
    whole = trained_once(layer, data)
    for frozen in [name for name, _ in layer.named_parameters()]:
        layer.get_parameter(frozen).requires_grad_(False)
        layer.zero_grad()
        x = data.clone().requires_grad_()
        layer(x).square().sum().backward()
        assert layer.get_parameter(frozen).grad is None
        assert torch.equal(x.grad, whole["input"])
        assert all(torch.equal(p.grad, whole[n]) for n, p in layer.named_parameters() if n != frozen)
        layer.get_parameter(frozen).requires_grad_(True)
    layer.zero_grad()
    layer(data).square().sum().backward()
    assert all(torch.equal(p.grad, whole[n]) for n, p in layer.named_parameters())
    layer.requires_grad_(False)
    assert not layer(data).requires_grad
    with torch.no_grad():
        assert torch.equal(layer(data), whole["output"])
    with torch.inference_mode():
        assert torch.equal(layer(data), whole["output"])


def test_repr() -> None:
    """Shape, density, and whether there is a bias."""
    assert repr(SparseLinear(8, 4, density=0.25)) == "SparseLinear((4, 8), density=0.25, bias=True)"
    text = repr(SparseConv2d(4, 6, 3, groups=2, bias=False, density=1 / 3))
    assert text == "SparseConv2d((6, 2, 3, 3), density=0.3333, bias=False)"


# ---- mistakes

HUGE = [
    (lambda: SparseLinear(2**30, 2**30, density=1e-3), "more than 32-bit positions can count"),
    (lambda: SparseLinear(2**16, 2**15, density=1.0), "2,147,483,648 non-zeros are more than"),
    (lambda: SparseConv2d(2**20, 2**20, 1, density=0.01), "more than 32-bit positions can count"),
    (
        lambda: SparseLinear(2**15 + 1, 2**16, mask=torch.ones(1, 1).bool().expand(2**16, 2**15 + 1)),
        "2,147,549,184 non-zeros are more than",
    ),
    (lambda: SparseLinear(2**31, 1, density=1e-12), "too large for 32-bit positions"),
    (lambda: SparseLinear(1, 2**31, density=1e-12), "too large for 32-bit positions"),
    (lambda: SparseConv2d(2**28, 1, 3, density=1e-12), "too large for 32-bit positions"),
    (lambda: SparseConv1d(1, 2**28, 9, density=1e-12), "too large for 32-bit positions"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="does not tell the most memory that a process had")
@pytest.mark.parametrize(("make", "message"), HUGE)
def test_what_is_too_large_is_refused_before_memory_is_taken(make: Any, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        make()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB; MiB would be the least


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda: SparseLinear(4, 3, density=0), ValueError, "SparseLinear: density must be above 0 and at most 1, not 0"),
    (lambda: SparseLinear(4, 3, density=1.5), ValueError, "density must be above 0 and at most 1, not 1.5"),
    (lambda: SparseLinear(4, 3, density=-0.1), ValueError, "density must be above 0"),
    (lambda: SparseLinear(4, 3, density=float("nan")), ValueError, "density must be above 0"),
    (lambda: SparseLinear(4, 3), ValueError, "pass either density, a share of the weights, or mask"),
    (lambda: SparseLinear(4, 3, density=0.5, mask=torch.ones(3, 4).bool()), ValueError, "pass either density"),
    (lambda: SparseLinear(4, 3, mask=torch.ones(4, 3).bool()), ValueError, r"of shape \(3, 4\), not .*bool \(4, 3\)"),
    (lambda: SparseLinear(4, 3, mask=torch.ones(3, 4)), ValueError, r"must be a bool tensor .*not torch.float32"),
    (lambda: SparseConv2d(4, 4, 3, groups=2, mask=torch.ones(4, 4, 3, 3).bool()), ValueError, r"\(4, 2, 3, 3\)"),
    (lambda: SparseLinear.from_dense(nn.Linear(4, 3), torch.ones(3, 3).bool()), ValueError, r"\(3, 4\)"),
    (lambda: SparseConv2d(4, 3, 3, groups=2, density=1.0), ValueError, "4 and 3 channels .* 2 groups"),
    (lambda: SparseConv2d(3, 4, 3, groups=2, density=1.0), ValueError, "3 and 4 channels .* 2 groups"),
    (lambda: SparseConv2d(4, 3, (3, 3, 3), density=1.0), ValueError, "SparseConv2d: .* is not one size or 2"),
    (lambda: SparseConv1d(4, 3, (3, 3), density=1.0), ValueError, "SparseConv1d: .* is not one size or 1"),
    (lambda: SparseConv2d.from_dense(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), ValueError, "'reflect'"),
    (lambda: SparseConv2d.from_dense(nn.Conv2d(3, 3, 2, padding="same")), ValueError, "same.*even"),
    (lambda: SparseConv1d.from_dense(nn.Conv1d(3, 3, 4, padding="same")), ValueError, "same.*even"),
    (lambda: SparseConv2d(3, 3, (3, 2), padding="same", density=0.5), ValueError, "same.*even kernel"),
    (lambda: SparseConv1d(3, 3, 3, 2, padding="same", density=0.5), ValueError, r"a stride of 1, not \(2,\)"),
    (lambda: SparseConv2d(3, 3, 3, padding="full", density=0.5), ValueError, "'same' or 'valid', not 'full'"),
    (lambda: SparseConv2d(0, 3, 3, density=0.5), ValueError, "SparseConv2d: 0 and 3 channels in 1 groups"),
    (lambda: SparseConv1d(4, 0, 3, density=0.5), ValueError, "each must be 1 or more"),
    (lambda: SparseConv2d(4, 4, 3, groups=0, density=0.5), ValueError, "each must be 1 or more"),
    (lambda: SparseLinear(4, 3, density=0.5)(torch.ones(2, 5)), ValueError, r"4 channels, not \(2, 5\)"),
    (lambda: SparseLinear(4, 3, density=0.5)(torch.tensor(1.0)), ValueError, r"4 channels, not \(\)"),
    (lambda: SparseConv2d(4, 3, 3, density=0.5)(torch.ones(2, 3, 9, 9)), ValueError, r"\(N, C, H, W\) with 4 channels"),
    (lambda: SparseConv2d(4, 3, 3, density=0.5)(torch.ones(4, 9, 9)), ValueError, r"\(N, C, H, W\).*not \(4, 9, 9\)"),
    (lambda: SparseConv1d(4, 3, 3, density=0.5)(torch.ones(2, 4, 9, 9)), ValueError, r"\(N, C, L\) with 4 channels"),
    (lambda: SparseLinear(4, 3, density=0.5)(torch.ones(2, 4).double()), TypeError, "computes in float32.*float64 inp"),
    (lambda: SparseLinear(4, 3, density=0.5)(torch.ones(2, 4).int()), TypeError, "computes in float32.*int32 input"),
    (lambda: SparseLinear(4, 3, density=0.5).double()(torch.ones(2, 4)), TypeError, "torch.float64 values"),
    (lambda: SparseLinear(4, 3, density=0.5).double()(torch.ones(2, 4).double()), TypeError, "torch.float64 values"),
    (lambda: SparseLinear(4, 3, density=0.5).bfloat16()(torch.ones(2, 4)), TypeError, "torch.bfloat16 values"),
    (
        lambda: SparseLinear(4, 3, density=0.5)(torch.ones(2, 4, device="meta")),
        RuntimeError,
        "CPU alone, not on",
    ),
    (
        lambda: SparseLinear(4, 3, density=0.5).to("meta")(torch.ones(2, 4)),
        RuntimeError,
        "CPU alone, not on",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), MISTAKES)
def test_mistakes(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_bias_of_another_format_is_refused() -> None:
    """Not read as if it were float32."""
    layer = SparseLinear(4, 3, density=0.5)
    layer.bias = nn.Parameter(layer.bias.double())
    with pytest.raises(TypeError, match="computes in float32"):
        layer(torch.ones(2, 4))


# ---- as PyTorch's


@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # PyTorch says that it has nothing to draw
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_empty_layers_are_as_empty_as_dense_ones(inputs: int, outputs: int, shape: tuple[int, ...]) -> None:
    dense = nn.Linear(inputs, outputs)
    made = [SparseLinear(inputs, outputs, density=0.5), SparseLinear.from_dense(dense)]
    for layer in (*made, made[1].to_dense(), copy.deepcopy(made[1])):
        x = torch.randn(*shape, inputs, requires_grad=True)
        y = layer(x)
        wanted = dense(x)
        assert y.shape == wanted.shape
        if layer is not made[0]:
            assert torch.equal(y, wanted)
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert torch.equal(layer.bias.grad, torch.full_like(layer.bias, math.prod(shape)))
    assert (made[0].density, made[0].mask().shape, made[0].weight().shape) == (0, *[dense.weight.shape] * 2)
    made[0].load_state_dict(made[1].state_dict())
    run = tombola.attach(made[0], SGD(made[0].parameters(), lr=0.1), tombola.SET(density=0.5, every=1), steps=3)
    assert run.density == 0


@pytest.mark.parametrize("kind", [SparseConv1d, SparseConv2d])
@pytest.mark.parametrize(
    ("padding", "kernel", "dilation"), [("same", 3, 1), ("same", 1, 1), ("same", 5, 2), ("same", 2, 2), ("valid", 4, 1)]
)
def test_padding_in_words(kind: Any, padding: Any, kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    dense = kind.dense(3, 4, kernel, padding=padding, dilation=dilation)
    layer = kind(3, 4, kernel, padding=padding, dilation=dilation, mask=torch.ones(dense.weight.shape).bool())
    layer.take_parameters(dense)
    x = torch.randn(2, 3, *[11] * (dense.weight.ndim - 2))
    torch.testing.assert_close(layer(x), dense(x), check_stride=False)
    torch.testing.assert_close(kind.from_dense(dense)(x), dense(x), check_stride=False)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_move_between_forward_and_backward_is_refused(compiled: bool) -> None:
    layer = SparseLinear(6, 5, density=0.5)
    used = torch.compile(layer, backend="aot_eager") if compiled else layer
    before = layer.values.detach().clone()
    x = torch.randn(4, 6, requires_grad=True)
    y = used(x)
    layer.move(torch.arange(15))
    assert torch.equal(layer.values, before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    used(x).sum().backward()  # the next one is in order
    layer.values.requires_grad_(False)
    y = used(x)
    layer.move(torch.arange(15, 30))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- on other devices: they cannot compute there, but are told apart from what can, and made it


@pytest.mark.parametrize(
    "layer",
    [
        SparseLinear(7, 5, density=0.4),
        SparseConv2d(4, 6, (3, 2), groups=2, density=0.4),
        SparseConv1d(3, 4, 3, bias=False, density=0.4),
        SparseGRU(3, 4, num_layers=2, density=0.4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_way_back_that_the_error_names_is_open_on_any_device(layer: Any) -> None:
    """The meta device stands for all: it has no data, and nothing on the CPU may be mixed in."""
    there, wanted = copy.deepcopy(layer).to("meta"), layer.to_dense()
    for part in there.modules():
        if isinstance(part, SparseLayer):
            for tensor in (part.places, part.weight(), part.mask()):
                assert tensor.is_meta
            assert part.weight().shape == part.mask().shape == part.shape
            part.set_weight(part.weight())
    dense = there.to_dense()
    assert type(dense) is type(wanted)
    assert all(tensor.is_meta for tensor in dense.state_dict().values())
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (dense, wanted)]
    assert shapes[0] == shapes[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_kind
def test_to_a_gpu_and_back(make: Make, shape: tuple[int, ...]) -> None:
    layer = make(density=0.4)
    there = copy.deepcopy(layer).cuda()
    assert torch.equal(there.weight().cpu(), layer.weight())
    assert torch.equal(there.to_dense().weight.cpu(), layer.to_dense().weight)
    there.load_state_dict(make(density=0.2).state_dict())
    assert torch.equal(there.cpu()(torch.ones(shape)), there(torch.ones(shape)))
