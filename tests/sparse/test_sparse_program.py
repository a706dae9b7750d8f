"""Networks for inference as one program: the outputs are those of the dense network, whatever the sizes."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import LAYOUTS, MASKS, laid_out, mask_of
from test_sparse_convert import close, masked, nets, random_masks, with_lively_norms
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tombola.lab import models
from tombola.sparse import Converted
from tombola.sparse.convert import made
from tombola.sparse.inference.images import Buffer, place
from tombola.sparse.inference.program import AT_ONCE, Program


def program_of(model: nn.Module, masks: dict[str, Tensor]) -> Converted:
    """The masked model as a program."""
    net = masked(model, masks).eval()
    of_layers = {name.removesuffix(".weight"): {"weight": mask} for name, mask in masks.items()}
    return Converted(
        made(net, of_layers, dict.fromkeys(of_layers, "sparse")), (), dense_ms=None, chosen_ms=None, as_program=True
    )


def run(model: Converted, x: Tensor) -> Tensor:
    """The output of the program itself, not of what stands in for it."""
    with torch.no_grad():
        result = model._program.run(model.net, x)  # type: ignore[arg-type]
    assert result is not None, "a step is missing"
    return result


def in_double(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double()).float()


class Every(nn.Module):
    """Steps that the networks of the lab do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (5, 2), stride=(1, 3), padding=(4, 1), dilation=(2, 1))
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, bias=False)
        self.norm = with_lively_norms(nn.BatchNorm2d(8))
        self.plain_norm = nn.BatchNorm2d(12, affine=False)
        nn.init.uniform_(self.plain_norm.running_var, 0.5, 2)  # type: ignore[arg-type]
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.identity = nn.Identity()
        self.head = nn.Linear(12 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.relu(self.norm(y)) + y
        y = self.pool(self.identity(y))
        y = y.relu() + F.avg_pool2d(y, 3, 1, padding=1, count_include_pad=False)
        y = torch.add(y, F.max_pool2d(y, 3, stride=1, padding=1))
        y = self.plain_norm(self.grouped(y))
        y = F.avg_pool2d(y, (2, 2), divisor_override=3)
        return self.head(self.drop(y).view(y.size(0), -1))


class Sequence(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self[0](x))
        y += self[1](y)
        return torch.flatten(self[2](y), 1)


@cache
def more_nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    images = {name: (net, (3, 16, 16)) for name, net in nets().items()}
    images["vgg16"] = (with_lively_norms(models.vgg16(width=0.125)), (3, 32, 32))
    convolutions = (nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 6, 5, padding=2), nn.Conv1d(6, 4, 3, 2))
    return images | {
        "sequence": (Sequence(*convolutions), (2, 19)),
        "perceptron": (nn.Sequential(nn.Linear(30, 40), nn.ReLU(inplace=True), nn.Linear(40, 7)), (30,)),
        "linear": (nn.Sequential(nn.Linear(3, 2)), (3,)),
    }


@pytest.mark.parametrize("name", more_nets())
@pytest.mark.parametrize("batch", [1, 2, 5, AT_ONCE, 2 * AT_ONCE + 3])
def test_the_output_is_that_of_the_dense_network(name: str, batch: int) -> None:
    model, shape = copy.deepcopy(more_nets()[name])
    masks = random_masks(model)
    x = torch.randn(batch, *shape)
    close(run(program_of(model, masks), x), in_double(masked(model.eval(), masks), x))


@pytest.mark.parametrize("batch", [1, 3, AT_ONCE])
def test_steps_that_the_networks_of_the_lab_do_not_have(batch: int) -> None:
    model = Every().eval()
    masks = random_masks(model)
    x = torch.randn(batch, 3, 17, 20)
    close(run(program_of(model, masks), x), in_double(masked(model, masks), x))


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=pairs,
    dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 2, 3, 7, 16, 18]),
    mask=st.sampled_from(MASKS),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
    relu=st.booleans(),
)
@example((1, 1, 1), (3, 3), (2, 2), (1, 1), (1, 1), (4, 4), 1, "all", "usual", True, True)
@example((1, 1, 1), (3, 3), (1, 1), (1, 1), (1, 1), (40, 40), 1, "many", "usual", True, True)
@example((2, 3, 2), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 2, "many", "usual", True, False)
def test_any_convolution(
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    mask: str,
    layout: str,
    bias: bool,
    relu: bool,
) -> None:
    """Alone, so that its sums are those of whole numbers: exact."""
    draw = torch.Generator().manual_seed(0)
    groups, inputs, outputs = channels[2], channels[0] * channels[2], channels[1] * channels[2]
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=draw))
    model = nn.Sequential(conv, nn.ReLU()) if relu else nn.Sequential(conv)
    masks = {"0.weight": mask_of(mask, tuple(conv.weight.shape), draw)}
    x = torch.randint(-4, 5, (batch, inputs, *size), generator=draw).float()
    found = run(program_of(model, masks), laid_out(x, layout))
    assert torch.equal(found, in_double(masked(model, masks), x))


POOLS: list[Callable[[Tensor], Tensor]] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d((1, 3), (2, 1)),
    nn.AvgPool2d(2),
    nn.AvgPool2d((3, 2), (1, 2), padding=1),
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveAvgPool2d(1),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("batch", [1, 3, AT_ONCE])
@pytest.mark.parametrize("after", ["nothing", "a convolution", "a convolution of pixels", "a layer of all"])
def test_pools_and_what_follows_them(pool: nn.Module, batch: int, after: str) -> None:
    conv = nn.Conv2d(2, 6, 3, padding=1)
    size = pool(torch.zeros(1, 6, 9, 8)).shape[1:].numel()
    follows: dict[str, list[nn.Module]] = {
        "nothing": [],
        "a convolution": [nn.Conv2d(6, 4, 3, padding=2)],
        "a convolution of pixels": [nn.Conv2d(6, 4, 1)],
        "a layer of all": [nn.Flatten(), nn.Linear(size, 3)],
    }
    model = nn.Sequential(conv, pool, *follows[after])
    masks = random_masks(model, 0.5)
    x = torch.randn(batch, 2, 9, 8)
    close(run(program_of(model, masks), x), in_double(masked(model, masks), x))


@pytest.mark.parametrize("batch", [1, 3, AT_ONCE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_reaches_what_it_reaches_in_the_dense_network(batch: int, value: float) -> None:
    """A weight that is not there does not see it; a pixel beyond the border neither."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3, 2, padding=1))
    x = torch.randn(batch, 2, 10, 10)
    x[-1, 0, 3, 0] = value
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim == 4}
    found, wanted = run(program_of(model, masks), x), in_double(model, x)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    assert not found[:-1].isnan().any()


def small() -> tuple[Converted, nn.Module]:
    torch.manual_seed(0)
    model = with_lively_norms(models.resnet20(width=0.25)).eval()
    masks = random_masks(model)
    return program_of(model, masks), masked(model, masks)


def test_threads_do_not_change_a_bit() -> None:
    fast, _ = small()
    x = torch.randn(3, 3, 16, 16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fast._program.forget()
            found.append(run(fast, x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_calls_do_not_share_their_outputs_and_sizes_may_change_from_call_to_call() -> None:
    fast, dense = small()
    inputs = [torch.randn(batch, 3, size, size) for batch, size in ((2, 16), (1, 12), (20, 16), (2, 16))]
    found = [run(fast, x) for x in inputs]
    for x, output in zip(inputs, found, strict=True):
        close(output, in_double(dense, x))


def test_from_several_threads_at_the_same_time() -> None:
    fast, dense = small()
    inputs = [torch.randn(1 + turn % 3, 3, 16, 16) for turn in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for x, found in zip(inputs, pool.map(lambda x: run(fast, x), inputs), strict=True):
            close(found, in_double(dense, x))


def test_no_more_memory_is_held_than_for_some_sizes() -> None:
    fast, _ = small()
    for size in range(8, 30):
        run(fast, torch.randn(1, 3, size, size))
    assert len(fast._program._parts) == 8


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), (3, 4)),
        (nn.Sequential(nn.Linear(5, 4)), (3, 2, 5)),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, ceil_mode=True)), (3, 2, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), (3, 2, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(2)), (3, 2, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), (3, 2, 5, 5)),
    ],
)
def test_a_step_that_there_is_not_goes_the_usual_way(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    fast = Converted(copy.deepcopy(model).eval(), (), dense_ms=None, chosen_ms=None, as_program=True)
    with torch.no_grad():
        assert fast._program.run(fast.net, x) is None  # type: ignore[arg-type]
        close(fast(x), model.eval()(x))


class Changing(nn.Module):
    """What is changed in place is seen by who reads it later."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.other, self.change = nn.Linear(4, 4), nn.Linear(4, 4), change

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), self.other(x)
        changed = self.change(y, z)
        return changed + y  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "change", [lambda y, z: F.relu(y, inplace=True), lambda y, z: y.relu_(), lambda y, z: y.add_(z)]
)
def test_what_is_changed_in_place_and_used_afterwards(change: Callable[[Tensor, Tensor], Any]) -> None:
    model = Changing(change).eval()
    x = torch.randn(3, 4)
    fast = program_of(model, random_masks(model, 1.0))
    with torch.no_grad():
        close(fast(x), model(x))


def test_gradients_autocast_and_other_types_go_the_usual_way() -> None:
    fast, dense = small()
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    (wanted,) = torch.autograd.grad(dense(x).sum(), x)
    close(found, wanted, 1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast._program.run(fast.net, x) is None  # type: ignore[arg-type]
    with torch.no_grad():
        assert fast._program.run(fast.net, x.double()) is None  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="computes in float32"):
            fast(x.double())
        assert fast(torch.zeros(0, 3, 16, 16)).shape == (0, 10)


def test_it_runs_where_nobody_turned_gradients_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the README's example: what was measured is what a plain call gets."""
    fast, _ = small()
    x = torch.randn(2, 3, 16, 16)
    wanted = run(fast, x)
    monkeypatch.setattr(fast.net, "forward", lambda *_: pytest.fail("the program is not used"))
    assert torch.is_grad_enabled()
    found = fast(x)
    assert torch.equal(found, wanted)
    assert not found.requires_grad
    monkeypatch.undo()
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in fast.to_dense().parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that PyTorch causes itself
def test_a_gradient_of_forward_mode_is_not_lost() -> None:
    fast, _ = small()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(2, 3, 16, 16), torch.ones(2, 3, 16, 16))
        assert fast._program.run(fast.net, x) is None  # type: ignore[arg-type]


def test_who_thaws_a_parameter_gets_its_gradient() -> None:
    fast, _ = small()
    x = torch.randn(2, 3, 16, 16)
    fast(x)
    bias = fast.net.get_parameter("fc.bias").requires_grad_()
    fast(x).sum().backward()
    assert bias.grad is not None
    close(bias.grad, torch.full_like(bias, 2.0))
    bias.requires_grad_(False)
    assert not fast(x).requires_grad


def test_weights_that_are_loaded_afterwards_count() -> None:
    fast, dense = small()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = fast(x)
        state = {name: 2 * v if name.endswith("fc.values") else v for name, v in fast.state_dict().items()}
        bias = dense.fc.bias
        fast.load_state_dict(state)
        close(fast(x) - bias, 2 * (before - bias))


def test_copies_and_pickles_have_programs_of_their_own() -> None:
    fast, dense = small()
    x = torch.randn(2, 3, 16, 16)
    run(fast, x)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    close(run(other, x), in_double(dense, x))
    assert isinstance(pickle.loads(pickle.dumps(fast._program)), Program)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_memory_is_shared_only_by_what_is_not_needed_at_the_same_time(sizes: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(floats, min(ends), max(ends)) for floats, *ends in sizes]
    total = place(buffers)
    for index, one in enumerate(buffers):
        assert 0 <= one.offset <= one.offset + one.floats <= total
        for other in buffers[:index]:
            if one.first <= other.last and other.first <= one.last:
                assert one.offset + one.floats <= other.offset or other.offset + other.floats <= one.offset
