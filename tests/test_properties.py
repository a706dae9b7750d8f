"""The table of promises: what every method keeps, whatever the optimiser, the layers and the loop.

A new method adds one line to ``table.METHODS``. Two ranks against one are in ``test_distributed.py``, stopping and
going on in ``test_resume.py``.
"""

from __future__ import annotations

import copy
import pickle
import shutil
from functools import partial

import pytest
import torch
from loop import OPTIMIZERS, copied, differ, hooks_of, loss_of, same, train
from table import METHODS, Account, Entry, World, half, hard_now, world
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, StepLR
from zoo import NETS, Net

import tombola
from tombola import Attachment, Fixed
from tombola.methods.moves import Moves
from tombola.methods.protocol import DynamicMethod

STEPS = 6
MLP = NETS["mlp"]
HARD = {name: entry for name, entry in METHODS.items() if (entry.hard or entry.hardens) and not entry.moves}

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # one of the zoo
    pytest.mark.filterwarnings("ignore:no weight is left in "),  # in layers as small as theirs
]

every_method = pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
hard_methods = pytest.mark.parametrize("entry", HARD.values(), ids=HARD)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def check_ticket(run: Attachment) -> None:
    """Inside hard(), dropped weights are exactly 0 and the others are not, but for those that have just grown."""
    with run.hard():
        for name, mask in run.masks.items():
            weight = run.parameters[name].detach()
            assert weight.isfinite().all()
            assert not weight[~mask].any()
            live, kept = int(weight.count_nonzero()), int(mask.sum())
            assert live == kept or (isinstance(run.method, DynamicMethod) and live < kept)


def grown_hard(entry: Entry, make: str = "momentum") -> World:
    """A world whose masks are bits by now."""
    it = world(entry, make, MLP, STEPS)
    done = entry.hardens(STEPS) if entry.hardens else 1
    train(it.model, it.optimizer, MLP, range(done))
    assert hard_now(entry, it.run)
    assert 0 < it.run.density < 1
    return it


# ---- weights


@every_method
@every_optimizer
def test_dropped_weights_are_exactly_zero(entry: Entry, make: partial[torch.optim.Optimizer]) -> None:
    it = world(entry, make, MLP, STEPS)
    account, seen = Account(entry, it), []

    def check(run: Attachment) -> None:
        seen.append(run.step)
        check_ticket(run)
        if not hard_now(entry, run):
            return
        for name, mask in run.masks.items():
            parameter = run.parameters[name]
            assert not parameter.detach()[~mask].any()
            assert parameter.grad is not None
            entries = [e for e in it.optimizer.state[parameter].values() if e.shape == mask.shape]
            assert all(not entry[~mask].any() for entry in entries)

    it.run.on_step(check)
    train(it.model, it.optimizer, MLP, range(STEPS))
    assert seen == list(range(1, STEPS + 1))
    assert account.grown > 0 or not isinstance(it.run.method, Moves)
    assert 0 < it.run.density < 1


@hard_methods
def test_gradients_and_optimizer_state_at_dropped_weights_are_zero(entry: Entry) -> None:
    it = grown_hard(entry, "adamw")

    def check() -> None:
        for name, mask in it.run.masks.items():
            grad = it.run.parameters[name].grad
            assert grad is not None
            assert grad[mask].any()
            assert not grad[~mask].any()

    train(it.model, it.optimizer, MLP, range(3, STEPS), after_backward=check)
    for name, mask in it.run.masks.items():
        state = it.optimizer.state[it.run.parameters[name]]
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key][mask].any()
            assert not state[key][~mask].any()


@every_method
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
def test_counts_are_exact(entry: Entry, name: str) -> None:
    net = NETS[name]
    it = world(entry, "adam", net, STEPS)
    Account(entry, it)
    train(it.model, it.optimizer, net, range(STEPS))
    masks = it.run.masks
    assert masks.sizes() == {n: p.numel() for n, p in it.model.named_parameters() if n in net.masked}
    assert it.run.density == sum(masks.counts().values()) / sum(masks.sizes().values())
    it.run.detach()
    check_ticket(it.run)


@every_method
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer(entry: Entry, name: str) -> None:
    net = NETS[name]
    it = world(entry, "adam", net, STEPS)
    Account(entry, it)
    assert tuple(it.run.parameters) == net.masked
    before = it.run.weights
    train(it.model, it.optimizer, net, range(STEPS))
    check_ticket(it.run)
    for layer, weight in it.run.weights.items():
        assert same(weight, before[layer]) != entry.trains_weights
    it.run.detach()
    assert torch.isfinite(it.model(net.batch(0))).all()


# ---- the model stays the user's


@every_method
def test_keys_parameters_and_storage_stay(entry: Entry) -> None:
    model = NETS["conv"].model()
    keys = list(model.state_dict())
    parameters = dict(model.named_parameters())
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    it = world(entry, "momentum", NETS["conv"], STEPS, model=model)
    for _ in range(3):
        train(model, it.optimizer, NETS["conv"], range(2))
        with it.run.hard():
            assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == storage
    it.run.detach()
    assert list(model.state_dict()) == keys
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == storage
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@every_method
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_of_the_model_are_plain_models(entry: Entry, clone: partial[nn.Module]) -> None:
    it = world(entry, "momentum", NETS["conv"], STEPS)
    train(it.model, it.optimizer, NETS["conv"], range(3))
    twin = clone(it.model)
    own = SGD(twin.parameters(), lr=0.1)
    assert not differ(twin.state_dict(), it.model.state_dict())
    assert not hooks_of(twin, own)
    before = copied(it.model.state_dict())
    train(twin, own, NETS["conv"], range(3))
    masks = it.run.masks
    assert all(p.detach()[~masks[n]].any() for n, p in twin.named_parameters() if n in masks and not masks[n].all())
    assert not differ(it.model.state_dict(), before)
    again = tombola.attach(twin, own, Fixed(half(twin)), steps=1)  # a copy can get an attachment of its own
    assert again.density < 1


@every_method
def test_detach_leaves_the_ticket_in_a_plain_model(entry: Entry) -> None:
    it = world(entry, "nesterov", NETS["conv"], STEPS)
    train(it.model, it.optimizer, NETS["conv"], range(STEPS))
    with it.run.hard():
        ticket = copied(it.model.state_dict())
    masks = it.run.masks
    it.run.detach()
    assert not differ(it.model.state_dict(), ticket)
    assert it.run.masks == masks
    assert not hooks_of(it.model, it.optimizer)
    train(it.model, it.optimizer, NETS["conv"], range(3))  # also beyond the steps that were announced
    assert all(parameter.detach()[~masks[name]].any() for name, parameter in it.run.parameters.items())


# ---- the user's loop


@every_method
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_one_compilation_while_masks_change(entry: Entry, backend: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    plain = world(entry, "momentum", MLP, STEPS)
    it = world(entry, "momentum", MLP, STEPS, model=torch.compile(MLP.model(), backend=counter))
    for step in range(STEPS):
        for each in (plain, it):
            train(each.model, each.optimizer, MLP, [step])
        with it.run.hard():
            it.model(MLP.batch(step))
    assert counter.frame_count == 1
    assert tuple(it.run.parameters) == MLP.masked
    for one, other in zip(plain.model.parameters(), it.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@pytest.mark.slow
@every_method
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # what inductor imports uses it
def test_inductor_computes_the_same(entry: Entry) -> None:
    torch._dynamo.reset()
    plain = world(entry, "adam", MLP, STEPS)
    it = world(entry, "adam", MLP, STEPS, model=torch.compile(MLP.model()))
    for each in (plain, it):
        train(each.model, each.optimizer, MLP, range(STEPS))
    assert it.run.masks == plain.run.masks
    for one, other in zip(plain.model.parameters(), it.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@every_method
@pytest.mark.parametrize("make", ["momentum", "adamw"])
def test_accumulated_gradients_are_those_of_one_large_batch(entry: Entry, make: str) -> None:
    ends = []
    for parts in (1, 4):
        it = world(entry, make, MLP, STEPS, model=MLP.model().double())
        train(it.model, it.optimizer, MLP, range(STEPS), parts=parts)
        ends.append(it)
    assert ends[0].run.masks == ends[1].run.masks
    for one, other in zip(ends[0].model.parameters(), ends[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@hard_methods
def test_clipping_sees_live_weights_only(entry: Entry) -> None:
    it = grown_hard(entry)
    twin = copy.deepcopy(it.model)
    x = MLP.batch(9)
    for model in (it.model, twin):
        model.zero_grad()
        loss_of(model, x).backward()
    for name, parameter in twin.named_parameters():
        if name in it.run.masks:
            parameter.grad *= it.run.masks[name]
    live = torch.nn.utils.get_total_norm([parameter.grad for parameter in twin.parameters()])
    norm = torch.nn.utils.clip_grad_norm_(it.model.parameters(), float(live) / 4)
    torch.testing.assert_close(norm, live)
    clipped = torch.nn.utils.get_total_norm([parameter.grad for parameter in it.model.parameters()])
    torch.testing.assert_close(clipped, live / 4)


@every_method
@pytest.mark.parametrize(
    "make", ["momentum", "adam fused", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "sgd fused"))]
)
def test_a_step_that_loss_scaling_skips_changes_nothing(entry: Entry, make: str) -> None:
    """GradScaler does not call the optimiser at all, or, if it is a fused one, lets it skip by itself."""
    ends = []
    for bad in ((), (2, 5)):  # not the first: fused optimisers begin their state even in a step that they skip
        it = world(entry, make, MLP, STEPS)
        scaler = torch.amp.GradScaler(MLP.device, init_scale=2.0**8)
        step = 0
        for attempt in range(STEPS + len(bad)):
            it.optimizer.zero_grad()
            loss = loss_of(it.model, MLP.batch(step))
            scaler.scale(loss * float("inf") if attempt in bad else loss).backward()
            before = it.snapshot()
            scaler.step(it.optimizer)
            if attempt in bad:
                assert not differ(it.snapshot(), before)
            else:
                step += 1
            assert it.run.step == step
            scaler.update()
        ends.append(it)
    unscaled = world(entry, make, MLP, STEPS)
    train(unscaled.model, unscaled.optimizer, MLP, range(STEPS))
    for other in (ends[1], unscaled):
        assert ends[0].run.masks == other.run.masks
        for one, two in zip(ends[0].model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(one, two)


@every_method
def test_bf16_autocast(entry: Entry) -> None:
    it = world(entry, "adam", NETS["conv"], STEPS)
    for step in range(STEPS):
        it.optimizer.zero_grad()
        with torch.autocast(it.net.device, dtype=torch.bfloat16):
            loss = loss_of(it.model, NETS["conv"].batch(step))
        loss.backward()
        it.optimizer.step()
        check_ticket(it.run)
    assert {parameter.dtype for parameter in it.model.parameters()} == {torch.float32}
    with torch.autocast(it.net.device, dtype=torch.bfloat16), torch.no_grad():
        it.model.eval()
        x = NETS["conv"].batch(0)
        it.model(x)  # autocast now holds weights in bf16, which hard() must not let through
        with it.run.hard():
            inside = it.model(x)
        outside = it.model(x)
    it.run.detach()
    with torch.autocast(it.net.device, dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(inside, it.model(x))
    assert hard_now(entry, it.run) or not torch.equal(inside, outside)


@every_method
@pytest.mark.parametrize("make", ["nesterov", "adamw", "adam fused"])
def test_schedulers_made_before_and_after_are_followed(entry: Entry, make: str) -> None:
    ends = []
    for early in (True, False):
        model = MLP.model()
        optimizer = OPTIMIZERS[make](model.parameters())
        scheduler = StepLR(optimizer, 2, gamma=0.3) if early else None
        it = world(entry, make, MLP, STEPS, model=model, optimizer=optimizer)
        train(model, optimizer, MLP, range(STEPS), scheduler=scheduler or StepLR(optimizer, 2, gamma=0.3))
        ends.append(it)
    one, other = ((it.model.state_dict(), it.run.weights, it.run.scores) for it in ends)
    assert not differ(one, other)
    constant = world(entry, make, MLP, STEPS)
    train(constant.model, constant.optimizer, MLP, range(STEPS))
    assert not same(ends[0].run.scores or ends[0].run.weights, constant.run.scores or constant.run.weights)


@every_method
@pytest.mark.parametrize("make", ["nesterov", "adamw"])
def test_nothing_learns_at_a_learning_rate_of_zero(entry: Entry, make: str) -> None:
    model = MLP.model()
    optimizer = OPTIMIZERS[make](model.parameters())
    scheduler = LambdaLR(optimizer, lambda step: float(step < 3))
    it = world(entry, make, MLP, STEPS, model=model, optimizer=optimizer)
    train(model, optimizer, MLP, range(3), scheduler=scheduler)
    weights, scores = it.run.weights, it.run.scores
    train(model, optimizer, MLP, range(3, STEPS), scheduler=scheduler)
    assert entry.moves or not differ(it.run.weights, weights)
    assert entry.steers or same(it.run.scores, scores)


@every_method
def test_each_parameter_group_has_its_own_learning_rate(entry: Entry) -> None:
    model = MLP.model()
    still, moving = list(model[0].parameters()), [*model[2].parameters(), *model[4].parameters()]  # type: ignore[index]
    optimizer = torch.optim.AdamW([{"params": still, "lr": 0.0}, {"params": moving}], lr=0.05)
    it = world(entry, "", MLP, STEPS, model=model, optimizer=optimizer)
    weights, scores = it.run.weights, it.run.scores
    train(model, optimizer, MLP, range(2))
    for name in MLP.masked:
        fixed = name == "0.weight"
        if fixed and entry.moves:
            continue
        assert same(it.run.weights[name], weights[name]) == (fixed or not entry.trains_weights)
        if scores and not entry.steers:
            assert same(it.run.scores[name], scores[name]) == fixed


@every_method
def test_frozen_parameters_are_left_alone(entry: Entry) -> None:
    model = MLP.model()
    for parameter in model[2].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    before = copied(model[2].state_dict())  # type: ignore[index]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameters in (trained, list(model.parameters())):  # in the optimiser or not
        it = world(entry, "", MLP, STEPS, model=model, optimizer=torch.optim.AdamW(parameters))
        assert tuple(it.run.parameters) == ("0.weight", "4.weight")
        train(model, it.optimizer, MLP, range(STEPS))
        it.run.detach()
        assert not differ(model[2].state_dict(), before)  # type: ignore[index]


@every_method
def test_parameters_without_gradient_in_a_step(entry: Entry) -> None:
    net = NETS["two heads"]
    it = world(entry, "adamw", net, STEPS)
    train(it.model, it.optimizer, net, range(3))
    before = it.run.weights
    it.model.only = "left"  # type: ignore[assignment]
    train(it.model, it.optimizer, net, range(3, STEPS))
    check_ticket(it.run)
    assert same(it.run.weights["left.weight"], before["left.weight"]) != entry.trains_weights
    if not entry.hardens and not entry.moves:
        assert not differ(it.run.weights["right.weight"], before["right.weight"])
    assert not it.run.parameters["right.weight"].grad


@every_method
def test_two_optimizers_on_one_model(entry: Entry) -> None:
    """Two players, each with its own optimiser and attachment, the gradients of one flowing through the other."""
    model = nn.ModuleDict({"maker": MLP.model(0), "judge": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))})
    maker, judge = model["maker"], model["judge"]
    runs = {}
    for name, player in model.items():
        net = Net(lambda player=player: player, (6,) if name == "maker" else (3,), ())  # type: ignore[misc]
        runs[name] = world(entry, "adam", net, STEPS, model=player)
    for step in range(STEPS):
        for name, it in runs.items():
            model.zero_grad()
            other = runs["judge" if name == "maker" else "maker"]
            before = copied(other.model.state_dict())
            judge(maker(MLP.batch(step))).square().mean().backward()
            it.optimizer.step()
            check_ticket(it.run)
            assert not differ(other.model.state_dict(), before)
    assert [it.run.step for it in runs.values()] == [STEPS, STEPS]


def test_two_attachments_on_one_model_and_optimizer() -> None:
    model = MLP.model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    first = tombola.attach(model, optimizer, tombola.ContinuousSparsification(), steps=STEPS, select=["0.weight"])
    masks = tombola.Masks({"2.weight": half(model)["2.weight"]})
    second = tombola.attach(model, optimizer, Fixed(masks), steps=STEPS)
    train(model, optimizer, MLP, range(STEPS))
    assert (first.step, second.step) == (STEPS, STEPS)
    check_ticket(first)
    check_ticket(second)
    first.detach()
    assert not differ(dict(first.parameters), {"0.weight": model[0].weight})  # type: ignore[index]
    assert not model[2].weight[~masks["2.weight"]].any()  # type: ignore[index]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["DataParallel", "compile"]
)
@every_method
def test_names_are_those_of_the_bare_model(entry: Entry, wrap: partial[nn.Module]) -> None:
    it = world(entry, "adam", MLP, STEPS, model=wrap(MLP.model()))
    train(it.model, it.optimizer, MLP, range(2))
    assert tuple(it.run.masks) == MLP.masked
    check_ticket(it.run)
