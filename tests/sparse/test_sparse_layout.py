"""The layout with the batch innermost: what is a view and what a copy, which way gradients lie, and that it lasts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LAYOUTS, draws, laid_out
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tombola.sparse import SparseConv1d, SparseConv2d, SparseLinear
from tombola.sparse import layout as layout_module
from tombola.sparse.layout import empty, innermost, inside, is_innermost, outside, usual
from tombola.sparse.turning import turn

SHAPES = [(3, 4), (3, 4, 5), (3, 4, 5, 6), (2, 3, 1, 4), (3, 1, 4, 2)]
LARGE = [(128, 256), (130, 17, 2, 3), (33, 129), (5, 7, 128)]  # turned by a loop of our own
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_size = pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)


def numbers(shape: tuple[int, ...], layout: str = "usual") -> Tensor:
    return laid_out(torch.randn(shape, generator=draws(len(shape))), layout)


class Copies(TorchDispatchMode):
    """Counts how often a tensor of at least ``size`` numbers is copied."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        copying = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous")
        self.count += function._schema.name in copying and made.numel() >= self.size
        return made


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch makes all copies, so that they are counted."""
    monkeypatch.setattr(layout_module, "_LARGE", 2**60)


# ---- there and back


@each_size
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inside(shape: tuple[int, ...], layout: str) -> None:
    """The batch comes last and all is contiguous; of what lies so already it is a view."""
    x = numbers(shape, layout)
    turned = inside(x)
    assert turned.is_contiguous()
    assert torch.equal(turned, x.movedim(0, -1))
    assert (turned.data_ptr() == x.data_ptr()) == (layout == "innermost")


@each_size
def test_outside(shape: tuple[int, ...]) -> None:
    """A view, of which :func:`inside` is the same memory again, in PyTorch's order of shapes."""
    turned = numbers(shape)
    x = outside(turned)
    assert tuple(x.shape) == (shape[-1], *shape[:-1])
    assert torch.equal(x, turned.movedim(-1, 0))
    assert x.data_ptr() == turned.data_ptr() == inside(x).data_ptr()
    assert x.stride(0) == 1
    assert inside(x).stride() == turned.stride()


@each_size
@pytest.mark.parametrize("layout", LAYOUTS)
def test_innermost(shape: tuple[int, ...], layout: str) -> None:
    """The same numbers, laid out as a new tensor is; what lies so already is left alone, and a copy is no view."""
    x = numbers(shape, layout)
    y = innermost(x)
    assert (y is x) == (layout == "innermost")
    assert torch.equal(y, x)
    assert inside(y).data_ptr() == y.data_ptr()
    assert y is x or (y.stride() == empty(x, shape).stride() and not y._is_view())


@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 1, 1), (1, 1), (0, 3), (4, 0, 2), (1, 1, 2, 2), (3, 1, 2)], ids=str)
def test_innermost_where_sizes_are_one_or_nothing(shape: tuple[int, ...]) -> None:
    """A dimension of 1 lies anywhere: nothing is copied only to change its stride."""
    x = torch.randn(shape)
    y = innermost(x)
    assert (y is x) == x.movedim(0, -1).is_contiguous()
    assert torch.equal(y, x)
    assert inside(y).data_ptr() == y.data_ptr()


@each_size
@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual(shape: tuple[int, ...], layout: str) -> None:
    """The same numbers; what has the batch innermost is copied, everything else is left alone."""
    x = numbers(shape, layout)
    if layout != "innermost":
        assert usual(x) is x
        return
    assert usual(x).is_contiguous()
    assert torch.equal(usual(x), x)
    assert usual(x).data_ptr() != x.data_ptr()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 300), columns=st.integers(0, 300), threads=st.integers(1, 3))
def test_a_turned_matrix(rows: int, columns: int, threads: int) -> None:
    matrix, before = torch.rand(rows, columns), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = turn(matrix, torch.full((columns, rows), torch.nan), rows)
    finally:
        torch.set_num_threads(before)
    assert found.is_contiguous()
    assert torch.equal(found, matrix.T)


@each_shape
@pytest.mark.parametrize("layout", LAYOUTS)
def test_which_layout_it_is(shape: tuple[int, ...], layout: str) -> None:
    assert is_innermost(numbers(shape, layout)) == (layout == "innermost")


@pytest.mark.parametrize("shape", [(1, 4), (1, 3, 4, 5), (7, 1), (7, 1, 1, 1)], ids=str)
def test_where_both_layouts_are_one(shape: tuple[int, ...]) -> None:
    """One image, or one number an image: nothing is copied, and it counts as usual."""
    for layout in ("usual", "innermost"):
        x = numbers(shape, layout)
        assert not is_innermost(x)
        assert inside(x).data_ptr() == x.data_ptr()
        assert usual(x) is x


# ---- gradients


@each_shape
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("turn", [inside, usual, lambda x: outside(inside(x))])
def test_gradients_are_those_of_a_view(turn: Any, shape: tuple[int, ...], layout: str) -> None:
    """The first and the second derivative, by PyTorch's examination."""
    x = numbers(shape, layout).double().requires_grad_()
    assert torch.autograd.gradcheck(turn, (x,))
    assert torch.autograd.gradgradcheck(turn, (x,))


@pytest.mark.parametrize("turn", [inside, usual])
def test_second_gradients_of_large_ones(turn: Any) -> None:
    """Of single precision, which our own loop turns: by a layer's gradient it must not be cut off."""
    x = numbers((128, 256), "usual" if turn is inside else "innermost").requires_grad_()
    (by_x,) = torch.autograd.grad(turn(x).pow(3).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(by_x.sum(), x)
    torch.testing.assert_close(twice, 6 * x.detach())


@each_size
def test_layouts_of_gradients(shape: tuple[int, ...]) -> None:
    """The gradient lies as what it belongs to, so that no operation on the way back mixes the two."""
    x = numbers(shape).requires_grad_()
    (by_x,) = torch.autograd.grad(inside(x), x, numbers((*shape[1:], shape[0])))
    assert by_x.is_contiguous()
    y = numbers(shape, "innermost").requires_grad_()
    for gradient in (numbers(shape), numbers(shape, "innermost")):
        (by_y,) = torch.autograd.grad(usual(y), y, gradient)
        assert is_innermost(by_y)
        assert torch.equal(by_y, gradient)
    (by_y,) = torch.autograd.grad(inside(y), y, numbers((*shape[1:], shape[0])))
    assert is_innermost(by_y)


def test_gradients_of_a_layer_lie_like_its_tensors() -> None:
    """The input's in the usual layout, the output's with the batch innermost."""
    layer = SparseConv2d(4, 5, 3, density=0.5)
    x = numbers((6, 4, 7, 8)).requires_grad_()
    seen = []
    y = layer(x)
    y.register_hook(seen.append)
    (by_x,) = torch.autograd.grad(y.relu().square().sum(), x)
    assert by_x.is_contiguous()
    assert [is_innermost(gradient) for gradient in seen] == [True]


# ---- between layers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SparseLinear(4, 6, density=0.5), (5, 4)),
        (SparseLinear(4, 6, density=0.5), (5, 3, 4)),
        (SparseConv1d(4, 6, 3, density=0.5), (5, 4, 9)),
        (SparseConv2d(4, 6, 3, padding=1, density=0.5), (5, 4, 6, 7)),
        (SparseConv2d(4, 6, 3, stride=2, padding=1, density=0.5), (3, 4, 3, 3)),
        (SparseConv2d(4, 6, 1, density=0.5), (5, 4, 6, 7)),
    ],
)
def test_layers_give_the_batch_innermost(layer: Any, shape: tuple[int, ...], layout: str) -> None:
    """Whatever they are given; what is a batch of sequences to a linear layer counts as one batch."""
    y = layer(numbers(shape, layout))
    y = y.flatten(0, -2) if isinstance(layer, SparseLinear) else y
    assert is_innermost(y)


BETWEEN: dict[str, Any] = {
    "nothing": lambda y: y,
    "relu": F.relu,
    "relu in place": lambda y: y.relu_(),
    "gelu": F.gelu,
    "addition": lambda y: y + y.relu(),
    "addition in place": lambda y: y.relu().add_(y),
    "a bias a channel": lambda y: y + torch.ones(y.shape[1], *[1] * (y.ndim - 2)),
    "dropout": lambda y: F.dropout(y, 0.5),
    "half of the channels": lambda y: y[:, :4],
}


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
def test_nothing_is_copied_between_layers(between: Any) -> None:
    """The second layer reads the very memory that the operation before it wrote: its saved input is no copy."""
    z = between(SparseConv2d(3, 8, 3, padding=1, density=0.5)(numbers((16, 3, 6, 7))))
    second = SparseConv2d(z.shape[1], 5, 3, padding=1, density=0.5)
    saved = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), Copies(size=z.numel()) as copies:
        second(z)
    assert is_innermost(z)
    assert z.data_ptr() in saved
    assert copies.count == 0


@pytest.mark.usefixtures("seen")
def test_a_usual_input_is_copied_once() -> None:
    """And so is its gradient, and the output of a dense layer; all between lies right."""
    draw = draws(0)
    layers = [SparseConv2d(8, 8, 3, padding=1, density=0.5, generator=draw) for _ in range(3)]
    head = SparseLinear(8 * 6 * 6, 10, density=0.1, generator=draw)
    x = numbers((16, 8, 6, 6)).requires_grad_()
    with Copies(size=16 * 8 * 6 * 6) as copies:
        y = layers[0](x).relu()
        y = layers[2](layers[1](y).relu()) + y
        loss = head(y.flatten(1)).square().sum()
        assert copies.count == 1
        loss.backward()
        assert copies.count == 2
    assert x.grad.is_contiguous()
    with Copies(size=16 * 8 * 6 * 6) as copies:
        layers[0](nn.Conv2d(8, 8, 1)(x))
    assert copies.count == 1


@pytest.mark.usefixtures("seen")
def test_a_sequence_passes_linear_layers_without_copies() -> None:
    """(batch, time, features) after a sparse linear layer is a view of what the next one reads."""
    first, second = SparseLinear(6, 8, density=0.5), SparseLinear(8, 4, density=0.5)
    y = first(torch.randn(5, 7, 6)).relu()
    with Copies(size=y.numel()) as copies:
        z = second(y)
    assert copies.count == 0
    assert tuple(z.shape) == (5, 7, 4)
    torch.testing.assert_close(z, second.to_dense()(y.contiguous()))
