"""SparseGRU: the numbers of nn.GRU in double precision, and everything that goes for sparse layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import OPTIMIZERS
from reference import MASKS, draws, mask_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

import tombola
from tombola import SET, Fixed, GraNet, Masks, RigL, Static
from tombola.lab.models import gru_lm
from tombola.sparse import SparseGRU, SparseLinear, convert, load, measure, save
from tombola.sparse.execution import recorders
from tombola.sparse.layout import is_innermost
from tombola.sparse.swap import make_dense, make_sparse


def masks_for(gru: nn.GRU, kind: str = "few", seed: int = 0) -> dict[str, Tensor]:
    draw = draws(seed)
    return {n: mask_of(kind, tuple(p.shape), draw) for n, p in gru.named_parameters() if n.startswith("weight")}


def masked(gru: nn.GRU, masks: dict[str, Tensor]) -> nn.GRU:
    gru = copy.deepcopy(gru)
    with torch.no_grad():
        for name, mask in masks.items():
            gru.get_parameter(name).mul_(mask)
    return gru


def pair(kind: str = "few", **options: Any) -> tuple[SparseGRU, nn.GRU]:
    """A sparse layer, and the dense one with the same numbers."""
    gru = nn.GRU(6, 10, **options)
    masks = masks_for(gru, kind)
    return SparseGRU.from_dense(gru, masks), masked(gru, masks)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    assert one.shape == other.shape
    scale = float(other.detach().norm()) + 1e-6
    assert float((one.double() - other.double()).detach().norm()) <= tolerance * scale


def agree(sparse: SparseGRU, dense: nn.GRU, x: Tensor, start: Tensor | None, seed: int = 0) -> None:
    """Outputs, last states and all gradients are those of ``dense`` in double precision."""
    exact = copy.deepcopy(dense).double()
    mine = [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in (x, start)]
    theirs = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in (x, start)]
    outcomes = sparse(*mine), exact(*theirs)
    draw = draws(seed)
    above = [torch.randn(tensor.shape, generator=draw) for tensor in outcomes[0]]
    for outcome, scale in zip(outcomes, (torch.float32, torch.float64), strict=True):
        sum((tensor * one.to(scale)).sum() for tensor, one in zip(outcome, above, strict=True)).backward()
    for one, other in zip(outcomes[0], outcomes[1], strict=True):
        assert one.dtype is torch.float32
        close(one, other)
    for one, other in zip(mine, theirs, strict=True):
        if one is not None and other is not None:
            close(one.grad, other.grad)
    weights = sparse.weights()
    for name, parameter in exact.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        if name in weights:
            close(weights[name].values.grad, gradient[weights[name].mask()])
        else:
            close(sparse.get_parameter(name).grad, gradient)


# ---- the numbers


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    steps=st.integers(1, 7),
    batch=st.sampled_from([0, 1, 2, 15, 16, 17, 33, 300]),
    layers=st.integers(1, 3),
    kind=st.sampled_from(MASKS),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    started=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_pytorch_in_double_precision(
    sizes: tuple[int, int],
    steps: int,
    batch: int,
    layers: int,
    kind: str,
    bias: bool,
    batch_first: bool,
    bidirectional: bool,
    started: bool,
) -> None:
    torch.manual_seed(0)
    gru = nn.GRU(*sizes, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    masks = masks_for(gru, kind)
    x = torch.randn((batch, steps, sizes[0]) if batch_first else (steps, batch, sizes[0]))
    start = torch.randn(layers * (1 + bidirectional), batch, sizes[1]) if started else None
    agree(SparseGRU.from_dense(gru, masks), masked(gru, masks), x, start)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_without_a_batch(batch_first: bool, started: bool) -> None:
    sparse, dense = pair(num_layers=2, batch_first=batch_first, bidirectional=True)
    agree(sparse, dense, torch.randn(5, 6), torch.randn(4, 10) if started else None)


def test_a_long_sequence() -> None:
    sparse, dense = pair("many", num_layers=2)
    agree(sparse, dense, torch.randn(200, 9, 6), torch.randn(2, 9, 10))


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Of the reset gate's share in it, too, which is inside the tangent."""
    sparse, _ = pair("many")
    x, above = torch.randn(4, 3, 6), torch.randn(4, 3, 10)
    values = sparse.weights()["weight_hh_l0"].values

    def loss() -> Tensor:
        return (sparse(x)[0] * above).sum()

    loss().backward()
    direction = torch.randn_like(values)
    with torch.no_grad():
        values.add_(direction, alpha=1e-2)
        more = float(loss())
        values.sub_(direction, alpha=2e-2)
        less = float(loss())
    assert (more - less) / 2e-2 == pytest.approx(float((values.grad * direction).sum()), rel=1e-2)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    sparse, dense = pair()
    sparse.requires_grad_(False)
    x = torch.randn(3, 2, 6, requires_grad=True)
    sparse(x)[0].sum().backward()
    wanted = torch.autograd.grad(dense(x)[0].sum(), x)[0]
    close(x.grad, wanted)
    assert all(parameter.grad is None for parameter in sparse.parameters())
    bias = sparse.get_parameter("bias_hh_l0").requires_grad_()
    sparse(x.detach())[0].sum().backward()
    dense.zero_grad()
    dense(x.detach())[0].sum().backward()
    close(bias.grad, dense.bias_hh_l0.grad)
    assert not sparse(x.detach().requires_grad_(False))[1].isnan().any()


@pytest.mark.parametrize("layout", ["usual", "turned", "every other"])
def test_inputs_and_gradients_in_any_layout(layout: str) -> None:
    sparse, dense = pair(batch_first=True)
    x = torch.randn(4, 10, 6)
    if layout == "turned":
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    elif layout == "every other":
        x = torch.randn(8, 10, 6)[::2]
    agree(sparse, dense, x, None)


def test_nothing_is_turned_between_layers_of_the_kind() -> None:
    first, second = SparseGRU(6, 10, density=0.5, batch_first=True), SparseGRU(10, 3, density=0.5, batch_first=True)
    between = first(torch.randn(4, 5, 6))[0]
    turned = between.permute(1, 2, 0)
    assert turned.is_contiguous()
    found = second(between)[0]
    close(found, second(between.contiguous())[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_sparse_readout_of_the_states(batch_first: bool) -> None:
    sparse = SparseGRU(6, 10, density=0.5, batch_first=batch_first)
    first, second = SparseLinear(10, 8, density=0.5), SparseLinear(8, 3, density=0.5)
    states = sparse(torch.randn(4, 5, 6))[0].detach().requires_grad_()
    other = states.detach().contiguous().requires_grad_()
    outputs = []
    for x in (states, other):
        between = first(x).relu()
        outputs.append(second(between))
        outputs[-1].square().sum().backward()
    close(outputs[0], outputs[1])
    close(states.grad, other.grad)
    assert is_innermost(outputs[0].flatten(0, 1))


def test_without_gradients_it_is_the_same() -> None:
    sparse, _ = pair(num_layers=2, bidirectional=True)
    x, start = torch.randn(5, 3, 6), torch.randn(4, 3, 10)
    usual = sparse(x, start)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = sparse.eval()(x, start)
        for one, other in zip(found, usual, strict=True):
            assert torch.equal(one, other)
            assert not one.requires_grad


def test_going_on_from_the_last_states_is_going_through_it_at_once() -> None:
    sparse, _ = pair(num_layers=2)
    x = torch.randn(7, 3, 6)
    whole, end = sparse(x)
    one, middle = sparse(x[:3])
    two, last = sparse(x[3:], middle)
    close(torch.cat([one, two]), whole)
    close(last, end)


def test_nan_and_infinity_pass_as_in_the_dense_layer() -> None:
    sparse, dense = pair("all")
    x = torch.randn(4, 5, 6)
    x[1, 2, 0], x[2, 3, 1] = torch.nan, torch.inf
    for one, other in zip(sparse(x), dense(x), strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert one.isnan().any()
    assert sparse(x)[0][:, [0, 1, 3, 4]].isfinite().all()


def test_dropout_is_between_layers_and_in_training_alone() -> None:
    options = {"num_layers": 2, "dropout": 1.0}
    gru = nn.GRU(6, 10, **options)
    sparse = SparseGRU.from_dense(gru, masks_for(gru, "all"))
    x = torch.randn(5, 3, 6)
    for mode in (True, False):
        for one, other in zip(sparse.train(mode)(x), gru.train(mode)(x), strict=True):
            close(one, other)
    assert not torch.allclose(sparse.train()(x)[0], sparse.eval()(x)[0])
    some = SparseGRU(6, 200, num_layers=2, dropout=0.25, density=0.5)
    assert not torch.equal(some(x)[0], some(x)[0])
    assert torch.equal(some.eval()(x)[0], some(x)[0])


def test_autocast_leaves_it_in_float32() -> None:
    sparse, dense = pair()
    x = torch.randn(5, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = sparse(x.bfloat16(), torch.zeros(1, 3, 10).bfloat16())[0]
    assert found.dtype is torch.float32
    close(found, dense(x.bfloat16().float())[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's own, after any break
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiling_a_model_around_it(dynamic: bool) -> None:
    """The graph breaks at the recurrence, as at nn.GRU; losses and gradients are the same."""
    torch.compiler.reset()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = SparseGRU(6, 10, density=0.4), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x * 2)[0].relu())  # type: ignore[no-any-return]

    model = Net()
    quick = torch.compile(model, backend="aot_eager", dynamic=dynamic)
    for steps in (5, 7):
        x = torch.randn(steps, 3, 6)
        outcomes = []
        for net in (model, quick):
            model.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            outcomes.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        assert len(outcomes[0]) == 7
        torch.testing.assert_close(outcomes[1], outcomes[0])


def test_exporting_is_refused() -> None:
    with pytest.raises(RuntimeError, match="export the dense layer, which to_dense"):
        torch.export.export(SparseGRU(4, 3, density=0.5), (torch.ones(5, 2, 4),))


# ---- a module like any other


def test_its_first_weights_vary_as_those_of_pytorch() -> None:
    gru, sparse = nn.GRU(300, 200), SparseGRU(300, 200, density=0.1, generator=draws(0))
    for name, weight in sparse.weights().items():
        dense = gru.get_parameter(name).detach()
        assert weight.density == pytest.approx(0.1, abs=1e-4)
        assert weight.shape == dense.shape
        assert float(weight.weight().square().mean()) == pytest.approx(float(dense.square().mean()), rel=0.1)
    assert float(sparse.get_parameter("bias_ih_l0").detach().abs().max()) == pytest.approx(200**-0.5, rel=0.05)
    again, other = (SparseGRU(300, 200, density=0.1, generator=draws(seed)) for seed in (0, 1))
    assert all(torch.equal(one, two) for one, two in zip(sparse.parameters(), again.parameters(), strict=True))
    assert not torch.equal(sparse.weights()["weight_hh_l0"].columns, other.weights()["weight_hh_l0"].columns)


def test_there_and_back_again() -> None:
    gru = nn.GRU(6, 10, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True).eval()
    gru.bias_hh_l1.requires_grad_(False)
    gru.weight_ih_l0.requires_grad_(False)
    masks = masks_for(gru)
    dense = SparseGRU.from_dense(gru, masks).to_dense()
    assert repr(dense) == repr(gru)
    assert not dense.training
    wanted = masked(gru, masks)
    for (name, one), (other_name, other) in zip(dense.named_parameters(), wanted.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name
        assert one.requires_grad is other.requires_grad, name
    part = SparseGRU.from_dense(wanted, {"weight_hh_l0": masks["weight_hh_l0"] | True})
    assert part.weights()["weight_hh_l0"].density == 1
    assert torch.equal(part.weights()["weight_ih_l1"].mask(), wanted.weight_ih_l1 != 0)


def test_state_dicts_carry_values_and_positions() -> None:
    sparse, _ = pair(num_layers=2)
    x = torch.randn(4, 3, 6)
    other = SparseGRU(6, 10, 2, density=0.7)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x)[0], sparse(x)[0])
    assert set(sparse.state_dict()) >= {"bias_ih_l0", "weight_hh_l1.values", "weight_hh_l1.columns"}
    state = sparse.state_dict()
    state["weight_hh_l0.columns"] = torch.full_like(state["weight_hh_l0.columns"], 99)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0\.columns: a position is outside"):
        other.load_state_dict(state)


def test_copies_and_pickles() -> None:
    sparse, _ = pair()
    x = torch.randn(4, 3, 6)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(other(x)[0], sparse(x)[0])
        with torch.no_grad():
            other.weights()["weight_hh_l0"].values.zero_()
        assert not torch.equal(other(x)[0], sparse(x)[0])


def test_masks_go_by_the_names_of_the_dense_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 10))
    names = [name for name in tombola.maskable(model) if name.startswith("1.")]
    model[1] = SparseGRU(6, 10, density=0.5)
    found = tombola.maskable(model)
    assert list(found) == names == ["1.weight_ih_l0", "1.weight_hh_l0"]
    assert found.others["1.bias_ih_l0"] == "a bias"
    assert list(tombola.maskable(model, SparseGRU)) == names
    assert list(tombola.maskable(model, ["1.weight_hh_l0"])) == names[1:]
    assert list(tombola.maskable(model[1])) == ["weight_ih_l0", "weight_hh_l0"]
    assert list(tombola.maskable(nn.Sequential(model), nn.Linear)) == ["0.0.weight"]


MISTAKES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: SparseGRU(4, 3), ValueError, "either density.*or masks"),
    (lambda: SparseGRU(4, 3, density=0.5, masks={}), ValueError, "either density.*or masks"),
    (lambda: SparseGRU(4, 3, density=0.0), ValueError, "density must be above 0"),
    (lambda: SparseGRU(0, 3, density=0.5), ValueError, "at least 1, not 0, 3 and 1"),
    (lambda: SparseGRU(4, 3, 0, density=0.5), ValueError, "at least 1, not 4, 3 and 0"),
    (lambda: SparseGRU(4, 3, dropout=1.5, density=0.5), ValueError, "between 0 and 1, not 1.5"),
    (lambda: SparseGRU(4, 3, masks={}), ValueError, r"'weight_ih_l0' must be a bool tensor.*\(9, 4\); it is missing"),
    (lambda: SparseGRU(4, 3, masks={"weight": torch.ones(1)}), ValueError, "no weight 'weight'; it has weight_ih_l0, "),
    (
        lambda: SparseGRU(4, 3, masks={"weight_ih_l0": torch.ones(9, 4)}),
        ValueError,
        r"'weight_ih_l0' must be.*torch.float32 \(9, 4\)",
    ),
    (
        lambda: SparseGRU(4, 3, masks={"weight_ih_l0": torch.ones(9, 3).bool()}),
        ValueError,
        r"'weight_ih_l0' must be.*torch.bool \(9, 3\)",
    ),
    (lambda: SparseGRU(4, 3, density=0.5)(torch.ones(2, 2, 5)), ValueError, r"with 4 features, not \(2, 2, 5\)"),
    (lambda: SparseGRU(4, 3, density=0.5)(torch.ones(4)), ValueError, r"\(T, N, input_size\).*not \(4,\)"),
    (lambda: SparseGRU(4, 3, density=0.5)(torch.ones(0, 2, 4)), ValueError, "at least one step"),
    (lambda: SparseGRU(4, 3, batch_first=True, density=0.5)(torch.ones(2, 0, 4)), ValueError, "at least one step"),
    (
        lambda: SparseGRU(4, 3, density=0.5)(torch.ones(5, 2, 4), torch.ones(1, 5, 3)),
        ValueError,
        r"first states must be \(1, 2, 3\), not \(1, 5, 3\)",
    ),
    (
        lambda: SparseGRU(4, 3, density=0.5)(torch.ones(5, 4), torch.ones(1, 1, 3)),
        ValueError,
        r"first states must be \(1, 3\), not \(1, 1, 3\)",
    ),
    (lambda: SparseGRU(4, 3, density=0.5)(torch.ones(5, 2, 4).double()), TypeError, "float32.*float64 input"),
    (lambda: SparseGRU(4, 3, density=0.5).double()(torch.ones(5, 2, 4)), TypeError, "torch.float64 values"),
    (
        lambda: SparseGRU(4, 3, density=0.5)(torch.ones(5, 2, 4), torch.ones(1, 2, 3).double()),
        TypeError,
        "float32.*float64 input",
    ),
    (
        lambda: SparseGRU(4, 3, density=0.5)(torch.ones(5, 2, 4, device="meta")),
        RuntimeError,
        "CPU alone, not on",
    ),
    (
        lambda: SparseGRU(4, 3, density=0.5).to("meta")(torch.ones(5, 2, 4)),
        RuntimeError,
        "CPU alone, not on",
    ),
    (
        lambda: SparseGRU(4, 3, density=0.5)(pack_padded_sequence(torch.ones(5, 2, 4), [5, 3])),
        TypeError,
        "not PackedSequence; pad",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), MISTAKES)
def test_mistakes(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# ---- methods


class Reader(nn.Module):
    """What the last output of two layers says of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 24, num_layers=2, batch_first=True)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0][:, -1])  # type: ignore[no-any-return]


METHODS: dict[str, Any] = {
    "static": Static(density=0.2),
    "set": SET(density=0.2, every=10),
    "rigl": RigL(density=0.2, every=10),
    "granet": GraNet(density=0.1, initial_density=0.4, every=10),
}
STEPS = 100


@pytest.fixture(autouse=True)
def _nothing_is_recorded() -> None:
    recorders.clear()


@pytest.mark.parametrize(
    ("method", "optimiser"),
    [
        *((method, "momentum") for method in METHODS),
        *(pytest.param(it, "adam foreach", marks=[] if it == "granet" else pytest.mark.slow) for it in METHODS),
    ],
)
def test_the_same_masks_and_losses_as_the_dense_twin(method: str, optimiser: str) -> None:
    make = partial(OPTIMIZERS[optimiser], lr=2e-3 if "adam" in optimiser else 0.1)
    torch.manual_seed(0)
    one = Reader()
    two: Any = copy.deepcopy(one)
    optimizer = make(one.parameters())
    run = tombola.attach(one, optimizer, METHODS[method], steps=STEPS, seed=3, select=nn.GRU)
    make_sparse(two, dict(run.masks))
    assert isinstance(two.gru, SparseGRU)
    mine = make(two.parameters())
    twin = tombola.attach(two, mine, METHODS[method], steps=STEPS, seed=3)
    assert list(twin.masks) == list(run.masks)
    start, seen, alike = run.masks, {run.masks.digest()}, []
    for step in range(STEPS):
        x = torch.randn(16, 6, 8, generator=draws(step))
        y = x.sum(1)[:, :4].argmax(1)
        losses = []
        for model, each in ((one, optimizer), (two, mine)):
            each.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            each.step()
            losses.append(float(loss.detach()))
        assert losses[1] == pytest.approx(losses[0], abs=2e-3)
        seen.add(run.masks.digest())
        assert twin.density == run.density
        alike.append(run.masks.overlap(twin.masks))
    assert min(alike) > 0.995  # two numbers may be equal but for rounding
    assert len(seen) >= (1 if method == "static" else 6)
    assert (start.overlap(run.masks) == 1) == (method == "static")
    if method == "granet":
        assert twin.density == pytest.approx(0.1, abs=1e-3)


def test_rigl_grows_by_the_gradient_of_the_whole_sequence() -> None:
    """One move, against the dense gradient of all steps by autograd."""
    torch.manual_seed(0)
    gru = nn.GRU(5, 7)
    masks = masks_for(gru, "many")
    sparse, dense = SparseGRU.from_dense(gru, masks), masked(gru, masks)
    optimizer = SGD(sparse.parameters(), lr=0.1)
    run = tombola.attach(sparse, optimizer, RigL(density=0.5, every=1, drop_fraction=0.4), steps=20)
    for _ in range(2):
        x = torch.randn(9, 4, 5)
        before = run.masks
        values = {name: weight.weight() for name, weight in sparse.weights().items()}
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                parameter.copy_(values[name] if name in values else sparse.get_parameter(name))
        for layer in (sparse, dense):
            layer.zero_grad()
            (layer(x)[0] - 1).square().sum().backward()
        optimizer.step()
        for name, mask in run.masks.items():
            grown = mask & ~before[name]
            gradient = dense.get_parameter(name).grad.abs()
            missing = ~before[name] & ~mask
            if grown.any() and missing.any():
                assert gradient[grown].min() >= gradient[missing].max() - 1e-5, name
    assert run.masks != Masks(masks)


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_nothing_of_the_dense_size_is_ever_made() -> None:
    with Largest() as largest:
        model = SparseGRU(1500, 1500, density=0.002)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = tombola.attach(model, optimizer, RigL(density=0.002, every=1), steps=6)
        before = {name: weight.places for name, weight in model.weights().items()}
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(3, 2, 1500))[0].square().sum().backward()
            optimizer.step()
    assert all(not torch.equal(weight.places, before[name]) for name, weight in model.weights().items())
    assert run.density == pytest.approx(0.002)
    assert largest.entries < 3 * 1500 * 1500 / 2  # 2²¹ at a time, to find the best of the missing ones


def test_masks_of_the_dense_net_fit() -> None:
    model = Reader()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = tombola.attach(model, optimizer, Static(density=0.3), steps=5, select=nn.GRU).masks
    made = copy.deepcopy(model)
    make_sparse(made, dict(masks))
    run = tombola.attach(made, SGD(made.parameters(), lr=0.1), Fixed(masks), steps=5)
    assert run.masks == masks


# ---- whole models


def test_converting_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gru_lm(classes=20, width=0.25).eval()
    draw = draws(1)
    masks = {n: torch.rand(p.shape, generator=draw) < 0.2 for n, p in tombola.maskable(model).items()}
    tokens = torch.randint(20, (4, 9))
    wanted = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            wanted.get_parameter(name).mul_(mask)
    fast = convert(model, masks, example=tokens, choose="sparse")
    assert isinstance(fast.net.get_submodule("gru"), SparseGRU)
    with torch.no_grad():
        close(fast(tokens), wanted(tokens))
    rows = {row.layer: row for row in fast.rows}
    kept = masks["gru.weight_ih_l0"].sum() + masks["gru.weight_hh_l0"].sum()
    assert rows["gru"].density == pytest.approx(float(kept) / (384 * 160))
    assert rows["gru"].bytes_after < rows["gru"].bytes_before
    dense = fast.to_dense()
    assert type(dense.get_submodule("gru")) is nn.GRU
    assert all(torch.equal(tensor, wanted.state_dict()[key]) for key, tensor in dense.state_dict().items())
    save(fast, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", gru_lm(classes=20, width=0.25))
    assert torch.equal(again(tokens), fast(tokens))
    assert again.rows == fast.rows
    assert torch.equal(again.to_dense().get_parameter("gru.weight_hh_l0"), wanted.get_parameter("gru.weight_hh_l0"))
    with pytest.raises(ValueError, match="does not fit"):
        load(tmp_path / "net.safetensors", gru_lm(classes=20, width=0.5))


def test_training_a_converted_model_is_training_the_masked_one() -> None:
    torch.manual_seed(0)
    model = gru_lm(classes=20, width=0.25).train()
    masks = {"gru.weight_hh_l0": torch.rand(384, 128) < 0.1}
    tokens = torch.randint(20, (4, 9))
    fast = convert(model, masks, example=tokens, choose="sparse")
    gru = fast.net.get_submodule("gru")
    assert isinstance(gru, SparseGRU)
    assert gru.weights()["weight_ih_l0"].density == 1  # no mask: all of it
    twin = copy.deepcopy(model)
    tombola.attach(twin, one := SGD(twin.parameters(), lr=0.5), Fixed(masks), steps=20, select=list(masks))
    other = SGD(fast.parameters(), lr=0.5)
    losses: list[list[float]] = [[], []]
    for _ in range(20):
        for net, optimizer, found in ((twin, one, losses[0]), (fast, other, losses[1])):
            optimizer.zero_grad()
            loss = cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert losses[1][-1] < losses[1][0] - 0.3


def test_the_fastest_form_is_one_layer_of_the_table() -> None:
    """A wide layer with a thousandth of its weights is faster sparse."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1024, 1024)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0]  # type: ignore[no-any-return]

    model = Net().eval()
    masks = {f"gru.{name}": torch.rand(3072, 1024) < 0.001 for name in ("weight_ih_l0", "weight_hh_l0")}
    x = torch.randn(8, 16, 1024)
    fast = convert(model, masks, example=x, bf16=True)
    (row,) = fast.rows
    assert (row.layer, row.chosen, row.bf16_ms) == ("gru", "sparse", None)
    assert row.sparse_ms < row.dense_ms
    (layer,) = measure(model, masks, x).layers
    assert layer.inference.dense_multiply_adds == 8 * 16 * 2 * 3072 * 1024
    assert layer.inference.sparse_multiply_adds == 8 * 16 * sum(int(mask.sum()) for mask in masks.values())
    assert layer.training.dense_multiply_adds == 2 * layer.inference.dense_multiply_adds
    assert layer.density == pytest.approx(0.001, rel=0.1)


def test_a_packed_sequence_leaves_the_layer_dense() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(pack_padded_sequence(x, [5, 3]))[1]  # type: ignore[no-any-return]

    fast = convert(Net().eval(), {"gru.weight_hh_l0": torch.rand(24, 8) < 0.1}, example=torch.randn(5, 2, 8))
    assert [row.chosen for row in fast.rows] == ["dense"]


def test_in_place_and_back() -> None:
    model = Reader()
    gru = copy.deepcopy(model.gru)
    masks = masks_for(gru)
    make_sparse(model, {f"gru.{name}": mask for name, mask in masks.items()})
    assert isinstance(model.gru, SparseGRU)
    make_dense(model)
    assert type(model.gru) is nn.GRU
    for name, parameter in masked(gru, masks).named_parameters():
        assert torch.equal(model.gru.get_parameter(name), parameter)
