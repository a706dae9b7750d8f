"""The three products of sparse layers, against PyTorch's dense ones in float64: in every shape, layout and length."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import (
    LAYOUTS,
    MASKS,
    agree,
    by_row,
    dense_output,
    dense_products,
    draws,
    laid_out,
    make_whole,
    mask_of,
    sparse_products,
    whole_numbers,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tombola.sparse import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear, kernels, threads
from tombola.sparse.geometry import Geometry
from tombola.sparse.operators import product

LENGTHS = [1, 2, 15, 16, 17, 31, 32, 47, 64, 127, 128, 255, 256, 257, 511, 700]  # floats of a row of pixels


@pytest.fixture
def _threads_back() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- any shape


@st.composite
def convolutions(draw: Any, dimensions: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of a convolution, and the shape of an input that it can take."""
    groups = draw(st.integers(1, 3))
    arguments: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    sizes = []
    for name, least, most in (("kernel_size", 1, 5), ("stride", 1, 3), ("padding", 0, 5), ("dilation", 1, 3)):
        arguments[name] = tuple(draw(st.integers(least, most)) for _ in range(dimensions))
    for k, p, d in zip(*(arguments[name] for name in ("kernel_size", "padding", "dilation")), strict=True):
        sizes.append(max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 7)))
    return arguments, (draw(st.integers(1, 19)), arguments["in_channels"], *sizes)


def check_convolution(
    kind: type[SparseConv1d | SparseConv2d],
    arguments: dict[str, Any],
    shape: tuple[int, ...],
    mask: str,
    layout: str,
    way_back: str,
    seed: int,
) -> None:
    draw = draws(seed)
    groups = arguments["groups"]
    weight = (arguments["out_channels"], arguments["in_channels"] // groups, *arguments["kernel_size"])
    layer = kind(**arguments, mask=mask_of(mask, weight, draw))
    make_whole(layer, draw)
    x = whole_numbers(shape, 8, draw)
    with torch.no_grad():
        gradient = whole_numbers(tuple(layer(x).shape), 8, draw)
    agree(layer, laid_out(x, layout), laid_out(gradient, way_back))


ANY_MASK, ANY_LAYOUT, ANY_SEED = st.sampled_from(MASKS), st.sampled_from(LAYOUTS), st.integers(0, 2**20)
WIDE = (
    {"in_channels": 2, "out_channels": 3, "groups": 1, "bias": True, "kernel_size": (9, 9), "stride": (1, 1)}
    | {"padding": (4, 4), "dilation": (1, 1)},
    (3, 2, 2, 3),
)
DEPTHWISE = (
    {"in_channels": 5, "out_channels": 5, "groups": 5, "bias": False, "kernel_size": (3, 3)}
    | {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)},
    (4, 5, 7, 12),
)


@given(convolutions(2), ANY_MASK, ANY_LAYOUT, ANY_LAYOUT, ANY_SEED)
@example(WIDE, "many", "usual", "usual", 0)
@example(DEPTHWISE, "many", "innermost", "usual", 0)
@example(DEPTHWISE, "all", "channels_last", "innermost", 0)
@settings(max_examples=250)
def test_any_convolution_of_images(
    case: tuple[dict[str, Any], tuple[int, ...]], mask: str, layout: str, way_back: str, seed: int
) -> None:
    """Output and all gradients are those of ``conv2d``, also where the kernel is larger than the image."""
    check_convolution(SparseConv2d, *case, mask, layout, way_back, seed)


@given(convolutions(1), ANY_MASK, ANY_LAYOUT, ANY_LAYOUT, ANY_SEED)
@settings(max_examples=100)
def test_any_convolution_of_sequences(
    case: tuple[dict[str, Any], tuple[int, ...]], mask: str, layout: str, way_back: str, seed: int
) -> None:
    """Output and all gradients are those of ``conv1d``."""
    check_convolution(SparseConv1d, *case, mask, layout, way_back, seed)


@given(
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    ANY_MASK,
    ANY_LAYOUT,
    ANY_SEED,
)
@settings(max_examples=100)
def test_any_linear_layer(
    batch: tuple[int, ...], inputs: int, outputs: int, bias: bool, mask: str, layout: str, seed: int
) -> None:
    """Output and all gradients are those of ``linear``, for inputs of one to four dimensions."""
    draw = draws(seed)
    layer = SparseLinear(inputs, outputs, bias, mask=mask_of(mask, (outputs, inputs), draw))
    make_whole(layer, draw)
    x = whole_numbers((*batch, inputs), 8, draw)
    agree(layer, laid_out(x, layout if batch else "usual"), whole_numbers((*batch, outputs), 8, draw))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_relu_in_the_product(mask: str, groups: int) -> None:
    """Outputs below 0 become 0; like PyTorch's, no gradient goes through them, nor through a sum of exactly 0."""
    draw = draws(groups)
    layer = SparseConv2d(6, 6, 3, padding=1, groups=groups, mask=mask_of(mask, (6, 6 // groups, 3, 3), draw))
    make_whole(layer, draw)
    x, gradient = whole_numbers((3, 6, 5, 7), 1, draw), whole_numbers((3, 6, 5, 7), 4, draw)
    exact = x.double().requires_grad_()
    weight, bias = (tensor.double().requires_grad_() for tensor in (layer.weight(), layer.bias.detach()))
    before = dense_output(layer, exact, weight, bias)
    if mask == "many":
        assert (before == 0).any()
        assert (before < 0).any()
    before.relu().backward(gradient.double())

    x.requires_grad_()
    y = product(x, layer.values, layer.bias, layer.positions, layer.geometry, relu=True)
    y.backward(gradient)
    assert torch.equal(y.double(), before.relu())
    assert torch.equal(x.grad.double(), exact.grad)
    assert torch.equal(layer.bias.grad.double(), bias.grad)
    rows = layer.mask().movedim(1, -1)
    assert torch.equal(layer.values.grad.double(), weight.grad.movedim(1, -1)[rows])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("make", "shape", "result"),
    [
        (lambda: SparseLinear(5, 3, density=0.5), (0, 5), (0, 3)),
        (lambda: SparseLinear(5, 3, density=0.5), (4, 0, 5), (4, 0, 3)),
        (lambda: SparseConv1d(5, 3, 3, density=0.5), (0, 5, 7), (0, 3, 5)),
        (lambda: SparseConv2d(5, 3, (3, 2), density=0.5), (0, 5, 7, 6), (0, 3, 5, 5)),
    ],
)
def test_an_empty_batch(make: Any, shape: tuple[int, ...], result: tuple[int, ...], layout: str) -> None:
    """Gives an empty output, and gradients of zero."""
    layer = make()
    x = laid_out(torch.empty(shape), layout).requires_grad_()
    y = layer(x)
    assert tuple(y.shape) == result
    y.sum().backward()
    assert x.grad.shape == shape
    assert layer.values.grad.tolist() == [0.0] * layer.values.numel()
    assert layer.bias.grad.tolist() == [0.0] * 3


# ---- every length of a run of pixels


@pytest.mark.parametrize("piece", [16, 64, 256])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole vectors in tiles of 16, 8, 4, 2 and 1, and what remains: as a batch, as a row of pixels, and as both."""
    monkeypatch.setattr(kernels, "PIECE", piece)  # the pieces of other processors
    draw = draws(length)
    linear = SparseLinear(9, 7, mask=mask_of("many", (7, 9), draw))
    make_whole(linear, draw)
    agree(linear, whole_numbers((length, 9), 8, draw), whole_numbers((length, 7), 8, draw))
    convolution = SparseConv2d(2, 3, 3, padding=1, mask=mask_of("many", (3, 2, 3, 3), draw))
    make_whole(convolution, draw)
    for batch, width in {(length, 1), (1, length), (7, -(-length // 7)), (-(-length // 5), 5)}:
        x, gradient = (whole_numbers((batch, channels, 2, width), 8, draw) for channels in (2, 3))
        agree(convolution, x, gradient)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [63, 64, 70, 300])
@pytest.mark.parametrize("density", [0.05, 0.3])
@pytest.mark.parametrize(("inputs", "outputs"), [(1100, 30), (30, 1100), (1024, 1030), (513, 1500)])
def test_columns_in_blocks(inputs: int, outputs: int, density: float, batch: int, relu: bool) -> None:
    """Rows with no non-zero in a block among them; each block goes on with what the ones before have summed up."""
    draw = draws(batch)
    mask = torch.rand(outputs, inputs, generator=draw) < density
    mask[::3, 512:] = False
    mask[1::3, :512] = False
    mask[5::7] = False
    layer = SparseLinear(inputs, outputs, mask=mask)
    make_whole(layer, draw)
    assert (layer.positions.blocks is not None) is (
        inputs > 512 and 8 * outputs * -(-inputs // 512) <= layer.values.numel()
    )
    x, gradient = (whole_numbers((batch, size), 8, draw) for size in (inputs, outputs))
    if not relu:
        agree(layer, x, gradient)
        return
    layer.relu = True
    x.requires_grad_()
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient)
    dense = layer.to_dense()
    wanted = torch.autograd.grad(F.relu(dense(x)), [x, *dense.parameters()], gradient)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1][mask])
    assert torch.equal(found[2], wanted[2])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (3, 4, 5, 7), (16, 4, 4, 3), (70, 4, 2, 2)])
@pytest.mark.parametrize("layer", [{"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 1}])
def test_what_is_added(layer: dict[str, Any], shape: tuple[int, ...], relu: bool) -> None:
    """Sums begin with it, and it has a gradient as well."""
    draw = draws(0)
    conv = SparseConv2d(4, 5, **layer, density=0.4)
    make_whole(conv, draw)
    dense = conv.to_dense()
    conv.relu = relu
    x = whole_numbers(shape, 8, draw).requires_grad_()
    added = whole_numbers(tuple(dense(x).shape), 8, draw).requires_grad_()
    gradient = whole_numbers(tuple(added.shape), 8, draw)
    wanted = dense(x) + added
    wanted = F.relu(wanted) if relu else wanted
    found = conv(x, added)
    assert torch.equal(found, wanted)
    ours, theirs = (torch.autograd.grad(y, [x, added], gradient, retain_graph=True) for y in (found, wanted))
    assert all(map(torch.equal, ours, theirs))
    (by_values,) = torch.autograd.grad(found, [conv.values], gradient)
    (by_weight,) = torch.autograd.grad(wanted, [dense.weight], gradient)
    assert torch.equal(by_values, by_row(conv, by_weight))
    with torch.no_grad():
        assert torch.equal(conv(x, added), wanted)
        assert torch.equal(conv(x, added[:1]), F.relu(dense(x) + added[:1]) if relu else dense(x) + added[:1])


def test_added_to_1024_channels_of_pixels() -> None:
    """Such a layer takes its columns in blocks, of which the first alone adds."""
    draw = draws(0)
    conv = SparseConv2d(1030, 3, 1, density=0.5)
    make_whole(conv, draw)
    assert conv.positions.blocks is not None
    x, added = whole_numbers((70, 1030, 1, 1), 8, draw), whole_numbers((70, 3, 1, 1), 8, draw)
    assert torch.equal(conv(x, added), conv.to_dense()(x) + added)


def test_blocks_where_they_are_worth_it() -> None:
    assert SparseLinear(4096, 64, density=0.05).positions.blocks is not None
    assert SparseLinear(4096, 64, density=0.01).positions.blocks is None  # hardly anything in each
    assert SparseLinear(512, 512, density=0.5).positions.blocks is None
    assert SparseLinear(64, 4096, density=0.05).positions.back_blocks is not None
    assert SparseConv2d(1024, 64, 3, density=0.5).positions.blocks is None
    moved = SparseLinear(4096, 64, density=0.05)
    moved.move(SparseLinear(4096, 64, density=0.05).places)
    other = SparseLinear(4096, 64, mask=moved.mask()).positions
    assert torch.equal(moved.positions.blocks, other.blocks)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (1, 7, 7)),
        ({"kernel_size": 3}, (1, 5, 9)),
        ({"kernel_size": (5, 2), "padding": (2, 0), "stride": (2, 1)}, (1, 9, 3)),
        ({"kernel_size": (2, 3), "padding": (0, 3), "dilation": (3, 2), "stride": (1, 3)}, (1, 15, 6)),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, (5, 13, 2)),
    ],
)
def test_small_images(layer: dict[str, Any], shape: tuple[int, int, int], mask: str) -> None:
    """Whose rows of pixels do not fill a vector, and are taken as one run: no row gets numbers of another."""
    batch, height, width = shape
    draw = draws(height)
    weight = SparseConv2d(4, 6, **layer, density=1.0).weight()
    convolution = SparseConv2d(4, 6, **layer, mask=mask_of(mask, tuple(weight.shape), draw))
    assert convolution.geometry.flat_plan(height, width, batch, piece=kernels.PIECE, lanes=kernels.LANES) is not None
    make_whole(convolution, draw)
    x = whole_numbers((batch, 4, height, width), 8, draw)
    with torch.no_grad():
        gradient = whole_numbers(tuple(convolution(x).shape), 8, draw)
    agree(convolution, x, gradient)
    with torch.no_grad():
        x[-1, -1, height // 2, width // 2] = torch.nan
        convolution.values.fill_(1.0)
        reached = dense_output(convolution, x.isnan().float(), convolution.mask().float(), None) > 0
        assert torch.equal(convolution(x).isnan(), reached)


class Framed(TorchDispatchMode):
    """Lets new tensors lie in the middle of memory that is all sevens."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        aten = torch.ops.aten
        makers = aten.new_empty.default, aten.new_empty_strided.default, aten.empty_like.default, aten.new_zeros.default
        if function not in makers:
            return made
        memory = torch.full((made.numel() + 64,), 7.0)
        self.memories.append(memory)
        framed = memory.as_strided(made.shape, made.stride(), 32)
        return framed.zero_() if function is aten.new_zeros.default else framed

    def intact(self) -> bool:
        return all(bool((torch.cat([memory[:32], memory[-32:]]) == 7).all()) for memory in self.memories)


@pytest.mark.parametrize("length", LENGTHS)
def test_nothing_is_written_beside_a_result(length: int) -> None:
    """Nor in the lanes of a vector that do not exist: the memory before and after stays as it is."""
    for layer, shape in (
        (SparseLinear(4, 3, density=1.0), (length, 4)),
        (SparseConv2d(4, 3, 3, padding=1, density=1.0), (1, 4, 2, length)),
        (SparseConv2d(4, 3, 3, padding=2, stride=2, density=1.0), (length, 4, 3, 2)),
        (SparseConv2d(4, 3, 3, padding=1, density=1.0), (1, 4, length, 5)),
    ):
        x = torch.randn(shape, requires_grad=True)
        with Framed() as frames:
            layer(x).sum().backward()
        assert len(frames.memories) >= 3
        assert frames.intact()
        frames.memories[0][-32] = 0
        assert not frames.intact()


# ---- rounding


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ordinary_numbers(layout: str) -> None:
    """No sum is further from the exact one than the rounding of as many additions in float32 can bring it."""
    draw = draws(1)
    layer = SparseConv2d(48, 32, 3, padding=1, stride=2, density=0.2, generator=draw)
    x = torch.randn(9, 48, 15, 13, generator=draw)
    gradient = torch.randn(9, 32, 8, 7, generator=draw)
    found, exact = (products(layer, laid_out(x, layout), gradient) for products in (sparse_products, dense_products))
    with torch.no_grad():
        layer.values.abs_()
        layer.bias.abs_()
    sizes = dense_products(layer, x.abs(), gradient.abs())
    additions = {"output": 48 * 9, "input": 32 * 9, "values": 9 * 8 * 7, "bias": 9 * 8 * 7}
    for name, tensor in found.items():
        error, bound = (tensor - exact[name]).abs(), (additions[name] + 1) * 2**-24 * sizes[name]
        assert bool((error <= bound).all()), name
        assert float((error / sizes[name]).mean()) < 2**-22, name  # in the mean far less


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck() -> None:
    """Differences of outputs are the gradients. Each product is linear in each operand: large steps are exact."""
    draw = draws(2)
    layer = SparseConv2d(4, 4, 3, stride=2, padding=1, groups=2, density=0.5, generator=draw)
    x = torch.randn(2, 4, 5, 4, generator=draw, requires_grad=True)

    def output(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    parameters = [parameter.detach().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(output, (x, *parameters), eps=0.5, atol=1e-4, rtol=1e-4)


def test_parameters_with_gaps_in_memory() -> None:
    """Values and biases that somebody passes as every second number of a tensor are read as such."""
    layer = SparseLinear(8, 6, density=0.5)
    x = torch.randn(5, 8, requires_grad=True)
    gaps = {name: torch.stack([p.detach(), p.detach() + 9], -1)[:, 0] for name, p in layer.named_parameters()}
    assert not any(tensor.is_contiguous() for tensor in gaps.values())
    y = torch.func.functional_call(layer, gaps, (x,))
    assert torch.equal(y, layer(x))
    gradients = [torch.autograd.grad(output.square().sum(), x)[0] for output in (y, layer(x))]
    assert torch.equal(*gradients)


def test_no_second_derivative() -> None:
    """It is refused, not wrong."""
    layer = SparseLinear(3, 3, density=0.5)
    x = torch.randn(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# ---- what is not finite


def broken(shape: tuple[int, ...], each: int, draw: torch.Generator) -> Tensor:
    """Ordinary numbers but for ``each`` NaN, ∞ and -∞, at random places of the second half of the channels."""
    x = torch.randn(shape, generator=draw)
    half = x[:, shape[1] // 2 :]
    for place, at in enumerate(torch.randint(half.numel(), (3 * each,), generator=draw).tolist()):
        half[tuple(torch.unravel_index(torch.tensor(at), half.shape))] = (torch.nan, torch.inf, -torch.inf)[place % 3]
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("padding", [0, 2])
def test_nan_and_infinity_where_a_dense_layer_has_them(padding: int, batch: int, layout: str) -> None:
    """With all weights there, output and gradients are NaN and ±∞ exactly where those of ``conv2d`` are.

    But for a gradient that is not finite where the kernel reaches over the edge: padding, which is not stored, is no
    0 × ∞ either.
    """
    draw = draws(batch)
    layer = SparseConv2d(4, 3, 3, padding=padding, stride=(1, 2), dilation=2, density=1.0, generator=draw)
    x = torch.randn(batch, 4, 9, 8, generator=draw)
    gradient = torch.randn(batch, 3, 5 + 2 * padding, 2 + padding, generator=draw)
    cases = [(broken(tuple(x.shape), 1, draw), gradient)]
    if not padding:
        cases.append((x, broken(tuple(gradient.shape), 1, draw)))
    for x, gradient in cases:
        found = sparse_products(layer, laid_out(x, layout), gradient)
        expected = dense_products(layer, x, gradient)
        for name, tensor in found.items():
            assert torch.equal(tensor.isnan(), expected[name].isnan()), name
            for infinity in (torch.inf, -torch.inf):
                assert torch.equal(tensor == infinity, expected[name] == infinity), name
        assert not found["values"].isfinite().all()
        assert found["values"].isfinite().any()


@pytest.mark.parametrize(
    "make", [lambda: SparseLinear(20, 15, density=0.1), lambda: SparseConv1d(9, 8, 3, density=0.1)]
)
def test_nan_and_infinity_reach_what_their_weights_lead_to(make: Any) -> None:
    """And nothing else: a weight that is not there is no 0 × ∞."""
    draw = draws(3)
    layer = make()
    shape = (33, 20) if isinstance(layer, SparseLinear) else (33, 9, 20)
    x = broken(shape, 5, draw)
    with torch.no_grad():
        y = layer(x)
        reached = dense_output(layer, (~x.isfinite()).float(), layer.mask().float(), None) > 0
    assert torch.equal(~y.isfinite(), reached)
    assert 0 < int(reached.sum()) < reached.numel() / 2


def test_nan_passes_the_relu_of_the_product() -> None:
    """As in PyTorch, where ReLU keeps NaN and turns -∞ into 0."""
    layer = SparseLinear(1, 1, bias=False, density=1.0)
    with torch.no_grad():
        layer.values.fill_(2.0)
    x = torch.tensor([[torch.nan], [-torch.inf], [torch.inf], [-1.0], [1.0]], requires_grad=True)
    y = product(x, layer.values, None, layer.positions, layer.geometry, relu=True)
    assert str(y.flatten().tolist()) == "[nan, 0.0, inf, 0.0, 2.0]"
    (by_x,) = torch.autograd.grad(y, x, torch.ones_like(y))
    expected = x.detach().requires_grad_()
    (expected * 2).relu().sum().backward()
    assert torch.equal(by_x, expected.grad)


# ---- threads


def all_bits() -> list[Tensor]:
    """Everything that a few layers compute from ordinary numbers, whose sums depend on their order."""
    found = []
    layers: list[tuple[SparseLayer, tuple[int, ...]]] = [
        (SparseLinear(300, 90, density=0.1, generator=draws(0)), (130, 300)),
        (SparseLinear(40, 1, density=0.5, generator=draws(0)), (9, 40)),
        (SparseConv2d(7, 23, 3, padding=1, density=0.3, generator=draws(0)), (17, 7, 9, 11)),
        (SparseConv2d(7, 1, 3, padding=1, density=0.5, generator=draws(0)), (17, 7, 20, 20)),
        (SparseConv2d(6, 6, 5, stride=2, padding=2, groups=6, density=0.5, generator=draws(0)), (5, 6, 8, 8)),
        (SparseConv1d(8, 5, 3, dilation=2, density=0.5, generator=draws(0)), (3, 8, 200)),
    ]
    for layer, shape in layers:
        x = torch.randn(shape, generator=draws(1))
        with torch.no_grad():
            gradient = torch.randn(layer(x).shape, generator=draws(2))
        found += sparse_products(layer, x, gradient).values()
    return found


@pytest.mark.usefixtures("_threads_back")
def test_every_number_of_threads_gives_the_same_bits() -> None:
    torch.set_num_threads(1)
    alone = all_bits()
    for count in (2, 3):
        torch.set_num_threads(count)
        for _ in range(3):
            assert all(torch.equal(one, other) for one, other in zip(alone, all_bits(), strict=True)), count


@pytest.mark.usefixtures("_threads_back")
def test_threads_do_not_add_to_the_same_sums() -> None:
    """A layer of one output has one row to share out, and every weight's gradient is a sum over the whole image: often
    enough in a row that two threads are at work at the same time."""
    layer = SparseConv2d(7, 1, 3, padding=1, density=0.5, generator=draws(0))
    x, gradient = torch.randn(64, 7, 20, 20, generator=draws(1)), torch.randn(64, 1, 20, 20, generator=draws(2))
    y = layer(x)
    torch.set_num_threads(1)
    (alone,) = torch.autograd.grad(y, layer.values, gradient, retain_graph=True)
    torch.set_num_threads(2)
    for _ in range(500):
        assert torch.equal(alone, torch.autograd.grad(y, layer.values, gradient, retain_graph=True)[0])


@pytest.mark.usefixtures("_threads_back")
def test_without_openmp_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch's own pool is out of reach, threads of Python do the same."""
    started = []

    class Counted(threading.Thread):
        def start(self) -> None:
            started.append(self)
            super().start()

    torch.set_num_threads(1)
    alone = all_bits()
    monkeypatch.setattr(threads, "Thread", Counted)
    torch.set_num_threads(3)
    all_bits()
    assert (not started) == (threads._openmp() is not None)
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    started.clear()
    assert all(torch.equal(one, other) for one, other in zip(alone, all_bits(), strict=True))
    assert len(started) >= 6 * 3  # of six layers, three products each
    assert not any(thread.is_alive() for thread in started)


# ---- sizes that no convolution has


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: SparseConv2d(1, 1, 3, density=1.0), (1, 1, 2, 5)),
        (lambda: SparseConv2d(1, 1, 3, stride=2, density=1.0), (1, 1, 5, 2)),
        (lambda: SparseConv2d(1, 1, (5, 1), density=1.0), (1, 1, 2, 2)),
        (lambda: SparseConv1d(1, 1, 3, padding=1, dilation=4, density=1.0), (1, 1, 6)),
    ],
)
def test_a_kernel_larger_than_the_padded_input_is_refused(make: Any, shape: tuple[int, ...]) -> None:
    """As by PyTorch, rather than answered with an empty output."""
    layer = make()
    with pytest.raises(RuntimeError):
        layer.to_dense()(torch.ones(shape))
    with pytest.raises(ValueError, match="too small for a kernel"):
        layer(torch.ones(shape))


@pytest.mark.parametrize("batch", [5, 16, 256])
def test_an_image_of_no_pixels_is_all_padding(batch: int) -> None:
    """The output is the bias, and no weight has a gradient; no memory is shown that nobody wrote."""
    layer = SparseConv2d(2, 3, 3, padding=2, density=1.0)
    x = torch.empty(batch, 2, 0, 4, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias[:, None, None].expand(batch, 3, 2, 6))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.values.grad.any()
    assert layer.bias.grad.tolist() == [batch * 12.0] * 3


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (5, 5)])
def test_numbers_of_the_geometry(kernel: tuple[int, int]) -> None:
    """Weights as PyTorch counts them, and a tap always fits its bits."""
    geometry = Geometry(6, 4, kernel, groups=2)
    assert geometry.weights == nn.Conv2d(6, 4, kernel, groups=2).weight.numel()
    assert geometry.taps <= 2**geometry.bits < max(2, 2 * geometry.taps)
    assert sorted(geometry.ranks()) == list(range(geometry.taps))
