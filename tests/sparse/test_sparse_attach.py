"""Methods on models with sparse layers: the same training as under masks, and nothing of the dense size."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from loop import OPTIMIZERS, copied, differ, hooks_of, same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import tombola
from tombola import SET, SNFS, SNIP, ContinuousSparsification, Fixed, GradualMagnitude, GraNet, Masks, RigL, Static
from tombola.patterns import NM
from tombola.sparse import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear
from tombola.sparse.execution import recorders
from tombola.ticket import model_tensors

STEPS = 100
METHODS: dict[str, Any] = {
    "static": Static(density=0.2),
    "set": SET(density=0.2, every=10),
    "rigl": RigL(density=0.2, every=10),
    "granet": GraNet(density=0.1, initial_density=0.4, every=10),
}
MOVING = [name for name in METHODS if name != "static"]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))


def conv() -> nn.Sequential:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, groups=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))


NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {"mlp": (mlp, (20,)), "conv": (conv, (3, 8, 8))}


def batch(net: str, step: int, size: int = 32) -> tuple[Tensor, Tensor]:
    shape = NETS[net][1]
    x = torch.randn(size, *shape, generator=torch.Generator().manual_seed(step))
    seen = torch.randn(x[0].numel(), 4, generator=torch.Generator().manual_seed(1))
    return x, (x.flatten(1) @ seen).argmax(1)


def dense(net: str) -> nn.Sequential:
    torch.manual_seed(0)
    return NETS[net][0]()


def sparse(net: str, masks: Masks | None = None) -> nn.Sequential:
    """The same net with sparse layers for the masked ones; without masks half of each, at random."""
    model = dense(net)
    draw = torch.Generator().manual_seed(2)
    for index, layer in enumerate(model):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            mask = torch.rand(layer.weight.shape, generator=draw) < 0.5 if masks is None else masks[f"{index}.weight"]
            kind: Any = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
            model[index] = kind.from_dense(layer, mask)
    return model


def step_of(model: nn.Module, optimizer: Optimizer, net: str, step: int, parts: int = 1) -> float:
    x, y = batch(net, step)
    loss = torch.zeros(())
    optimizer.zero_grad()
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = cross_entropy(model(a), b) / parts
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


@pytest.fixture(autouse=True)
def _others_are_gone() -> None:
    gc.collect()  # attachments of earlier tests
    recorders.clear()


# ---- the same as under masks


@pytest.mark.parametrize("optimiser", ["momentum", "adam foreach", "adamw fused"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_the_same_masks_and_losses_as_the_dense_twin(net: str, method: str, optimiser: str) -> None:
    make = partial(OPTIMIZERS[optimiser], lr=2e-3 if "adam" in optimiser else 0.02)
    one = dense(net)
    optimizer = make(one.parameters())
    run = tombola.attach(one, optimizer, METHODS[method], steps=STEPS, seed=3)
    two = sparse(net, run.masks)
    mine = make(two.parameters())
    twin = tombola.attach(two, mine, METHODS[method], steps=STEPS, seed=3)
    assert all(isinstance(two.get_submodule(name.rpartition(".")[0]), SparseLayer) for name in twin.parameters)
    assert list(twin.masks) == list(run.masks)
    start, seen, alike = run.masks, {run.masks.digest()}, []
    for step in range(STEPS):
        losses = step_of(one, optimizer, net, step), step_of(two, mine, net, step)
        assert losses[1] == pytest.approx(losses[0], abs=2e-3)
        masks = run.masks
        seen.add(masks.digest())
        assert twin.density == run.density
        alike.append(masks.overlap(twin.masks))
    assert min(alike) > 0.995  # two numbers may be equal but for rounding
    assert len(seen) >= (1 if method == "static" else 6)
    assert (start.overlap(run.masks) == 1) == (method == "static")
    if method == "granet":
        assert twin.density == pytest.approx(0.1, abs=1e-3)


def test_three_dimensional_inputs_and_one_dimensional_convolutions() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Linear(5, 7))
    optimizer = SGD(one.parameters(), lr=0.1)
    run = tombola.attach(one, optimizer, RigL(density=0.4, every=2), steps=20)
    start = copied(dict(run.masks))
    torch.manual_seed(0)
    two = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Linear(5, 7))
    two[0] = SparseConv1d.from_dense(two[0], start["0.weight"])  # type: ignore[arg-type]
    two[2] = SparseLinear.from_dense(two[2], start["2.weight"])  # type: ignore[arg-type]
    mine = SGD(two.parameters(), lr=0.1)
    twin = tombola.attach(two, mine, RigL(density=0.4, every=2), steps=20)
    for step in range(20):
        x = torch.randn(8, 4, 9, generator=torch.Generator().manual_seed(step))
        for model, each in ((one, optimizer), (two, mine)):
            each.zero_grad()
            model(x).square().mean().backward()
            each.step()
        assert twin.masks == run.masks
    assert twin.masks != Masks(start)


@pytest.mark.parametrize("method", MOVING)
def test_a_layer_that_is_used_twice(method: str) -> None:
    class Twice(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    layer = nn.Linear(12, 12)
    one = Twice(copy.deepcopy(layer))
    optimizer = SGD(one.parameters(), lr=0.1, momentum=0.9)
    run = tombola.attach(one, optimizer, METHODS[method], steps=60)
    two = Twice(SparseLinear.from_dense(layer, run.masks["layer.weight"]))
    mine = SGD(two.parameters(), lr=0.1, momentum=0.9)
    twin = tombola.attach(two, mine, METHODS[method], steps=60)
    for step in range(60):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        for model, each in ((one, optimizer), (two, mine)):
            each.zero_grad()
            (model(x) - x.roll(1, 1)).square().mean().backward()
            each.step()
        assert twin.masks == run.masks


# ---- what moves, and what is carried along


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "adamw fused", "rmsprop", "adagrad"])
@pytest.mark.parametrize("method", MOVING)
def test_values_and_state_stay_with_their_connections(method: str, optimiser: str) -> None:
    model = sparse("conv")
    optimizer = OPTIMIZERS[optimiser](model.parameters())
    run = tombola.attach(model, optimizer, METHODS[method], steps=STEPS)
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    parameters = {name: layer.values for name, layer in layers.items()}

    def scattered(name: str, tensor: Tensor) -> Tensor:
        return layers[name].scattered(tensor.detach(), layers[name].places)

    def everything() -> dict[str, dict[str, Tensor]]:
        found = {}
        for name, values in parameters.items():
            state = {k: t for k, t in optimizer.state[values].items() if isinstance(t, Tensor) and t.ndim}
            assert all(tensor.shape == values.shape for tensor in state.values())
            found[name] = {key: scattered(name, t) for key, t in {"values": values, **state}.items()}
        return found

    moved = 0
    for step in range(45):
        before, masks = everything(), run.masks
        step_of(model, optimizer, "conv", step)
        after, now = everything(), run.masks
        for name, layer in layers.items():
            assert layer.values is parameters[name]
            assert layer.values is optimizer.param_groups[0]["params"][2 * list(layers).index(name)]
            new = now[name] & ~masks[name]
            moved += int(new.sum())
            for key, tensor in after[name].items():
                assert not tensor[new].any(), key
                if method == "rigl" and new.any():  # the move is instead of the step
                    both = now[name] & masks[name]
                    assert torch.equal(tensor[both], before[name][key][both])
    assert moved > 50


def test_what_is_dropped_and_grown_at_once_is_as_if_nothing_had_happened() -> None:
    model = nn.Sequential(SparseLinear(6, 5, density=1.0))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    tombola.attach(model, optimizer, RigL(density=0.5, every=1, drop_fraction=1.0), steps=20)
    layer: Any = model[0]
    for step in range(5):
        before = copied((layer.values, optimizer.state))
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        if step % 2 == 0:  # a move
            assert same(list(before), [layer.values.detach(), optimizer.state]) or step == 0
    assert layer.density == 1.0


def test_granet_makes_everything_smaller() -> None:
    model = sparse("mlp")
    optimizer = Adam(model.parameters(), lr=1e-3)
    run = tombola.attach(model, optimizer, METHODS["granet"], steps=STEPS)
    first: Any = model[0]
    values, sizes = first.values, []
    for step in range(STEPS // 2 + 1):
        step_of(model, optimizer, "mlp", step)
        sizes.append(run.density)
        entries = [values, values.grad, optimizer.state[values]["exp_avg"], first.columns, first.order]
        assert len({tensor.shape for tensor in entries}) == 1
    assert first.values is values
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 6
    assert sizes[-1] == pytest.approx(0.1, abs=1e-3)


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("method", MOVING)
def test_nothing_of_the_dense_size_is_ever_there(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.sparse.growth.ENTRIES", 2**14)
    with Largest() as seen:
        model = nn.Sequential(nn.Linear(8, 3000), SparseLinear(3000, 2000, density=0.001), nn.Linear(2000, 4))
        optimizer = Adam(model.parameters())
        run = tombola.attach(model, optimizer, METHODS[method], steps=100)
        places = copied(model[1].places)
        for _ in range(22):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
        assert list(run.parameters) == ["1.weight"]
        assert run.density <= 0.001
        assert run.diagnostics()["dead_layers"] == []
        run.state_dict()
        run.detach()
    assert not torch.equal(places, model[1].places)  # type: ignore[arg-type]
    assert seen.entries < 100_000  # of 6,000,000


# ---- how it is recorded


@pytest.mark.parametrize("method", ["rigl", "granet"])
def test_gradient_accumulation_is_one_large_batch(method: str) -> None:
    masks = []
    for parts in (1, 4):
        model = sparse("conv")
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        run = tombola.attach(model, optimizer, METHODS[method], steps=STEPS)
        for step in range(45):
            step_of(model, optimizer, "conv", step, parts)
        masks.append(run.masks)
    assert masks[0].overlap(masks[1]) > 0.99


@pytest.mark.parametrize("to_none", [True, False])
def test_a_backward_pass_whose_gradient_was_cleared_does_not_count(to_none: bool) -> None:
    masks = []
    for spare in (False, True):
        model = sparse("mlp")
        optimizer = SGD(model.parameters(), lr=0.05)
        run = tombola.attach(model, optimizer, RigL(density=0.5, every=3), steps=100)
        for step in range(8):
            for number in [step + 50] * spare + [step]:
                x, y = batch("mlp", number)
                optimizer.zero_grad(set_to_none=to_none)
                cross_entropy(model(x), y).backward()
            optimizer.step()
        masks.append(run.masks)
    assert masks[0] == masks[1]


def test_loss_scaling_changes_no_masks_and_a_skipped_step_nothing() -> None:
    found = []
    for scaled in (False, True):
        model = sparse("mlp")
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        run = tombola.attach(model, optimizer, RigL(density=0.5, every=3), steps=100)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(12):
            x, y = batch("mlp", step)
            if scaled and step in (4, 8):
                before = copied((model.state_dict(), run.state_dict()))
                optimizer.zero_grad()
                scaler.scale(cross_entropy(model(x), y) * torch.inf).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                assert same(before, (model.state_dict(), run.state_dict()))
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model(x), y)).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        found.append(run.masks)
    assert found[0] == found[1]


def test_what_is_recorded_is_let_go() -> None:
    model = sparse("mlp")
    optimizer = SGD(model.parameters(), lr=0.05)
    run = tombola.attach(model, optimizer, RigL(density=0.5, every=3), steps=100)
    assert len(recorders) == 3  # the first step moves
    step_of(model, optimizer, "mlp", 0)
    assert not recorders
    for step in range(3):
        step_of(model, optimizer, "mlp", step)
    assert len(recorders) == 3
    run.detach()
    assert not recorders
    assert not hooks_of(model, optimizer)
    again = tombola.attach(model, optimizer, RigL(density=0.5, every=3), steps=100)
    assert len(recorders) == 3
    del again, run, optimizer
    gc.collect()
    assert not recorders


@pytest.mark.parametrize(
    ("net", "method"),
    [
        ("mlp", "rigl"),
        ("conv", "granet"),
        pytest.param("mlp", "granet", marks=pytest.mark.slow),
        pytest.param("conv", "rigl", marks=pytest.mark.slow),
    ],
)
def test_compiled(net: str, method: str) -> None:
    outcomes = []
    for compiled in (False, True):
        model = sparse(net)
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        used: Any = model
        if compiled:
            torch._dynamo.reset()
            used = torch.compile(model, backend="aot_eager", fullgraph=True)
        run = tombola.attach(used, optimizer, METHODS[method], steps=STEPS)
        outcomes.append([step_of(used, optimizer, net, step) for step in range(45)])
        outcomes.append(run.masks)  # type: ignore[arg-type]
    assert outcomes[0] == pytest.approx(outcomes[2], abs=1e-4)
    assert outcomes[1].overlap(outcomes[3]) > 0.99  # type: ignore[attr-defined]


# ---- which layers


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    return nn.Sequential(SparseLinear(20, 64, density=0.1, generator=draw), nn.ReLU(), nn.Linear(64, 4))


def test_dense_layers_beside_sparse_ones_stay_dense_unless_selected() -> None:
    found = tombola.maskable(mixed())
    assert list(found) == list(found.sparse) == ["0.weight"]
    assert found.others == {
        "0.bias": "a bias",
        "2.weight": "dense beside sparse layers; select=… can name it",
        "2.bias": "a bias",
    }
    everything: list[Any] = [["0.weight", "2.weight"], lambda name, p: True, [SparseLayer, nn.Linear]]
    for select in everything:
        assert list(tombola.maskable(mixed(), select)) == ["0.weight", "2.weight"]
    assert list(tombola.maskable(mixed(), nn.Linear)) == ["2.weight"]
    assert list(tombola.maskable(mixed(), ["2.weight"])) == ["2.weight"]
    assert tombola.maskable(mixed(), nn.Linear).others["0.weight"] == "the values of a sparse layer"
    assert list(tombola.maskable(SparseLinear(4, 3, density=0.5))) == ["weight"]
    with pytest.raises(ValueError, match=r"no parameter '3\.weight'; it has 0\.weight"):
        tombola.maskable(mixed(), ["3.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_sparse_and_masked_layers_in_one_model(method: str) -> None:
    model = mixed()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    run = tombola.attach(model, optimizer, METHODS[method], steps=STEPS, select=["0.weight", "2.weight"])
    start = run.masks
    share = 0.4 if method == "granet" else 0.2
    assert start.counts() == {"0.weight": 128, "2.weight": round(share * 256)}
    for step in range(STEPS):
        step_of(model, optimizer, "mlp", step)
        assert not model[2].weight[~run.masks["2.weight"]].any()  # type: ignore[index]
    assert (run.masks == start) == (method == "static")
    if method == "granet":
        assert run.masks.kept == round(0.1 * (20 * 64 + 256))
    else:
        assert run.masks.counts() == start.counts()
    run.detach()
    assert not hooks_of(model, optimizer)


def test_fixed_names_what_sparse_layers_have() -> None:
    model = mixed()
    layer: Any = model[0]
    optimizer = SGD(model.parameters(), lr=0.05)
    rest = torch.rand(4, 64) < 0.5
    run = tombola.attach(model, optimizer, Fixed(Masks({"0.weight": layer.mask()})), steps=3)
    assert run.masks == Masks({"0.weight": layer.mask()})
    run.detach()
    both = Masks({"0.weight": layer.mask(), "2.weight": rest})
    run = tombola.attach(model, optimizer, Fixed(both), steps=3, select=["0.weight", "2.weight"])
    step_of(model, optimizer, "mlp", 0)
    assert run.masks == both
    run.detach()
    with pytest.raises(ValueError, match=r"Fixed: the mask of '0\.weight' is not where"):
        tombola.attach(model, optimizer, Fixed(Masks({"0.weight": ~layer.mask()})), steps=3)
    with pytest.raises(ValueError, match=r"not among 0\.weight.*select"):
        tombola.attach(model, optimizer, Fixed(both), steps=3)


# ---- the attachment


def test_its_other_parts() -> None:
    model = sparse("mlp")
    optimizer = SGD(model.parameters(), lr=0.05)
    run = tombola.attach(model, optimizer, METHODS["rigl"], steps=STEPS)
    seen: list[int] = []
    run.on_step(lambda it: seen.append(it.step))
    for step in range(3):
        step_of(model, optimizer, "mlp", step)
    assert seen == [1, 2, 3]
    before = copied(model.state_dict())
    with run.hard():
        assert same(before, model.state_dict())
    assert run.penalty() == 0
    assert run.density == run.masks.density == run.diagnostics()["density"]
    assert {name: tensor.shape for name, tensor in run.weights.items()} == {
        name: parameter.shape for name, parameter in run.parameters.items()
    }
    assert "RigL, step 3 of 100" in repr(run)
    run.detach()
    run.detach()
    assert same(before, model.state_dict())
    assert not hooks_of(model, optimizer)
    step_of(model, optimizer, "mlp", 3)


@pytest.mark.parametrize("optimiser", ["momentum", "adamw"])
@pytest.mark.parametrize("method", [*METHODS, "mixed"])
def test_going_on_is_as_never_having_stopped(method: str, optimiser: str) -> None:
    it = METHODS["granet" if method == "mixed" else method]

    def begun() -> tuple[nn.Module, Optimizer, tombola.Attachment]:
        model = mixed() if method == "mixed" else sparse("mlp")
        optimizer = OPTIMIZERS[optimiser](model.parameters())
        select = ["0.weight", "2.weight"] if method == "mixed" else None
        return model, optimizer, tombola.attach(model, optimizer, it, steps=STEPS, seed=4, select=select)

    model, optimizer, run = begun()
    for stop in (41, 42):  # before the next step, and before a move of RigL's
        for step in range(run.step, stop):
            step_of(model, optimizer, "mlp", step)
        saved = copied((model.state_dict(), optimizer.state_dict(), run.state_dict()))
        other, its, again = begun()
        other.load_state_dict(saved[0])
        again.load_state_dict(saved[2])
        its.load_state_dict(saved[1])
        for step in range(stop, stop + 40):
            step_of(other, its, "mlp", step)
        ahead = copy.deepcopy(saved)
        for step in range(stop, stop + 40):
            step_of(model, optimizer, "mlp", step)
        assert not differ(copied(model.state_dict()), copied(other.state_dict()))
        assert not differ(run.state_dict(), again.state_dict())
        assert not differ(optimizer.state_dict(), its.state_dict())
        assert same(ahead, saved)
        model, optimizer, run = begun()
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        run.load_state_dict(saved[2])


def test_states_that_do_not_fit() -> None:
    model = sparse("mlp")
    optimizer = SGD(model.parameters(), lr=0.05)
    run = tombola.attach(model, optimizer, METHODS["rigl"], steps=STEPS)
    step_of(model, optimizer, "mlp", 0)
    state = copied(run.state_dict())

    fresh = sparse("mlp")
    other = tombola.attach(fresh, SGD(fresh.parameters(), lr=0.05), METHODS["rigl"], steps=STEPS)
    before = copied((fresh.state_dict(), other.state_dict()))
    with pytest.raises(ValueError, match=r"'0\.weight' has its connections elsewhere.*load that first"):
        other.load_state_dict(state)
    twin = dense("mlp")
    masked = tombola.attach(twin, SGD(twin.parameters(), lr=0.05), METHODS["rigl"], steps=STEPS)
    with pytest.raises(ValueError, match="of a model with sparse layers, of which"):
        masked.load_state_dict(state)
    with pytest.raises(ValueError, match="model with sparse layers: it has no 'positions'"):
        other.load_state_dict(masked.state_dict())
    with pytest.raises(ValueError, match="of other sparse layers: none instead of"):
        other.load_state_dict(state | {"hard": state["hard"] | {"positions": {}}})
    fresh.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="has no 'generator'"):
        other.load_state_dict(state | {"dynamic": {"memory": {}}})
    other.load_state_dict(state)
    assert not same(before, (fresh.state_dict(), other.state_dict()))
    assert other.step == 1
    run.detach()
    with pytest.raises(ValueError, match="detached"):
        run.load_state_dict(state)


# ---- what cannot be


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ContinuousSparsification(), "ContinuousSparsification needs scores.*use RigL"),
        (SNFS(density=0.2), "SNFS needs"),
        (SNIP(density=0.2), "SNIP needs"),
        (GradualMagnitude(density=0.2), r"GradualMagnitude needs.*0\.weight.*to_dense"),
        (RigL(density=0.2, average=3), r"RigL\(average=3\).*leave average=1"),
        (RigL(density=0.5, pattern=NM(2, 4)), r"RigL\(pattern=NM.*leave the pattern out"),
        (Static(density=0.5, pattern=NM(2, 4)), r"Static\(pattern=NM"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_methods_that_need_the_dense_size(method: Any, message: str) -> None:
    model = sparse("mlp")
    optimizer = SGD(model.parameters(), lr=0.05)
    before = copied(model.state_dict())
    with pytest.raises(ValueError, match=message):
        tombola.attach(model, optimizer, method, steps=10)
    assert same(before, model.state_dict())
    assert not hooks_of(model, optimizer)
    assert not recorders
    tombola.attach(model, optimizer, Static(density=0.2), steps=10)


def test_a_ticket_search_needs_dense_layers() -> None:
    with pytest.raises(ValueError, match=r"TicketSearch: '0\.weight' is a sparse layer"):
        tombola.TicketSearch(mixed(), tombola.IMP(), rounds=2)


def test_optimisers_and_layers_that_do_not_fit() -> None:
    model = sparse("mlp")
    with pytest.raises(ValueError, match=r"`values` of the sparse layer '0\.weight' is not in the optimiser"):
        tombola.attach(model, SGD([*model.parameters()][1:], lr=0.1), METHODS["rigl"], steps=10)
    optimizer = SGD(model.parameters(), lr=0.1)
    first: Any = model[0]
    kept = first.values.data.clone()
    first.values.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"'0\.weight' holds NaN"):
        tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    first.values.data.copy_(kept)
    first.values.data = first.values.data.double()
    with pytest.raises(ValueError, match=r"'0\.weight' has torch\.float64 values"):
        tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    first.values.data = kept
    run = tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    with pytest.raises(ValueError, match="already attached"):
        tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    model.double()
    with pytest.raises(RuntimeError, match="float32 on the CPU"):
        optimizer.step()
    model.float()
    first.values = nn.Parameter(kept)
    with pytest.raises(RuntimeError, match="another parameter; attach anew"):
        optimizer.step()
    assert run.step == 0


def freeze(model: Any, x: Tensor) -> None:
    model[0].values.requires_grad_(False)


def overwrite(model: Any, x: Tensor) -> None:
    x.zero_()


def make_infinite(model: Any, x: Tensor) -> None:
    model[0].values.grad[0] = torch.inf


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (freeze, RuntimeError, "frozen after attach"),
        (overwrite, RuntimeError, r"input of '0\.weight' was overwritten"),
        (make_infinite, FloatingPointError, r"gradient of '0\.weight' is not finite at step 0"),
    ],
)
def test_steps_that_cannot_be(spoil: Callable[[Any, Tensor], None], error: type[Exception], message: str) -> None:
    model = nn.Sequential(SparseLinear(6, 5, density=0.5), nn.Linear(5, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    x = torch.randn(6, 4).T  # batch innermost, so that the layer takes it as it is
    model(x).sum().backward()
    spoil(model, x)
    before = copied(model.state_dict())
    with pytest.raises(error, match=message):
        optimizer.step()
    assert same(before, model.state_dict())
    assert run.step == 0


def test_gradients_that_were_not_seen() -> None:
    model = nn.Sequential(SparseLinear(6, 5, density=0.5), nn.Linear(5, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 6)).sum().backward()
    tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    with pytest.raises(RuntimeError, match=r"backward pass of '0\.weight' was not seen.*call attach\(\) before"):
        optimizer.step()


def test_infinite_inputs_are_found_though_the_values_do_not_see_them() -> None:
    model = nn.Sequential(SparseLinear(6, 5, mask=torch.arange(30).view(5, 6) % 6 == 0), nn.Linear(5, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    tombola.attach(model, optimizer, METHODS["rigl"], steps=10)
    x = torch.randn(4, 6)
    x[0, 3] = torch.inf  # a feature that no connection looks at
    model(x).sum().backward()
    with pytest.raises(FloatingPointError, match="inputs or output gradients"):
        optimizer.step()


# ---- converted models: the names of the plain one


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that PyTorch causes itself
@pytest.mark.parametrize("wrap", [lambda it: it, torch.compile, nn.DataParallel], ids=["bare", "compiled", "parallel"])
def test_masks_of_a_converted_model_fit_the_one_it_was_made_from(wrap: Callable[[nn.Module], Any]) -> None:
    model, (x, _) = dense("conv").train(), batch("conv", 0, 4)
    masks = sparse_masks(model)
    fast = tombola.sparse.convert(model, masks, example=x, choose="sparse")
    net, optimizer = wrap(fast), SGD(fast.parameters(), lr=0.05)
    assert list(tombola.maskable(net)) == list(masks)
    assert set(tombola.maskable(net).others) == {"0.bias", "2.bias", "5.bias"}
    run = tombola.attach(net, optimizer, RigL(density=0.3, every=2), steps=6, select=list(masks))
    for step in range(6):
        step_of(fast, optimizer, "conv", step)
    found = run.masks
    run.detach()
    assert found != masks
    assert list(found) == list(masks)
    counted = tombola.flops.count(net, x, found)
    assert counted == tombola.flops.count(model, x, found)
    assert counted.total < counted.dense
    ticket = tombola.Ticket(found, model_tensors(fast.to_dense()))
    assert ticket.restore(model) == found
    with torch.no_grad():
        torch.testing.assert_close(model(x), fast(x))


def test_a_trained_converted_model_is_converted_for_inference() -> None:
    model, (x, _) = dense("conv").train(), batch("conv", 0, 4)
    fast = tombola.sparse.convert(model, sparse_masks(model), example=x, choose="sparse")
    optimizer = SGD(fast.parameters(), lr=0.05)
    run = tombola.attach(fast, optimizer, SET(density=0.3, every=2), steps=4)
    for step in range(4):
        step_of(fast, optimizer, "conv", step)
    faster = tombola.sparse.convert(fast.eval(), run.masks, example=x, choose="sparse")
    assert faster.inference
    densities = {name.removesuffix(".weight"): float(mask.float().mean()) for name, mask in run.masks.items()}
    assert {row.layer: row.density for row in faster.rows} == pytest.approx(densities)
    torch.testing.assert_close(faster(x), fast(x))


def sparse_masks(model: nn.Module) -> Masks:
    draw = torch.Generator().manual_seed(3)
    return Masks({n: torch.rand(p.shape, generator=draw) < 0.3 for n, p in tombola.maskable(model).items()})
