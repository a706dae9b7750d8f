"""The training loop and the measurement, alone."""

from __future__ import annotations

import math

import pytest
import torch
from loop import differ
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tombola.lab.errors import LabError
from tombola.lab.runs.train import Epoch, fit, measure
from tombola.lab.seeds import derive

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def test_stopping_and_going_on_is_never_having_stopped() -> None:
    def run(cuts: list[int]) -> tuple[object, object, list[Epoch]]:
        model, seen, done = net(), [], 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for upto in cuts:
            torch.randn(upto)  # whatever happens in between
            fit(
                model,
                optimizer,
                lambda epoch: [(X[epoch:], Y[epoch:])],
                epochs=upto,
                done=done,
                seed=5,
                factor=lambda epoch: 1 / (1 + epoch),
                after_epoch=seen.append,
            )
            done = upto
            fresh = net()
            fresh.load_state_dict(model.state_dict())
            again = torch.optim.SGD(fresh.parameters(), lr=99.0, momentum=0.9)
            again.load_state_dict(optimizer.state_dict())
            model, optimizer = fresh, again
        return model.state_dict(), optimizer.state_dict(), seen

    straight, cut = run([6]), run([1, 4, 6])
    assert not differ(straight[:2], cut[:2])
    assert straight[2] == cut[2]
    assert [epoch.lr for epoch in cut[2]] == pytest.approx([0.1 / (1 + e) for e in range(6)])


def test_the_global_generator_is_as_before() -> None:
    model = net()
    state = torch.random.get_rng_state()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: [(X, Y)], epochs=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loader_that_shuffles_with_the_global_generator() -> None:
    def order() -> list[int]:
        loader = DataLoader(TensorDataset(X, torch.arange(12)), batch_size=6, shuffle=True)
        model, seen = net(), []

        def objective(x: Tensor, numbers: Tensor) -> Tensor:
            seen.extend(numbers.tolist())
            return nn.functional.cross_entropy(model(x), numbers % 3)

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, lambda epoch: loader, epochs=2, seed=1, objective=objective)
        return seen

    first = order()
    torch.randn(3)
    assert order() == first
    assert first[:12] != first[12:]  # each epoch has its own order


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_loss_that_is_not_finite(epoch: int) -> None:
    model = net()

    def batches(number: int) -> list[tuple[Tensor, Tensor]]:
        return [(X * (math.inf if number == epoch else 1.0), Y)]

    with pytest.raises(LabError, match=f"the training loss is nan in epoch {epoch + 1}; lower the learning rate"):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), batches, epochs=4)


def test_an_epoch_without_a_batch() -> None:
    model, once = net(), iter([(X, Y)])
    with pytest.raises(LabError, match="epoch 2 had no batch; is the DataLoader used up"):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: once, epochs=2)


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    """Of 5, 5 and 2 examples: each weighs as many as it has."""

    def trained(size: int | None) -> tuple[object, list[Epoch]]:
        torch.manual_seed(0)
        model, seen = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), list[Epoch]()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        fit(
            model, optimizer, lambda epoch: [(X.double(), Y), (X[3:].double(), Y[3:])], epochs=3, clip=0.05,
            micro_batch=size, after_epoch=seen.append,
        )  # fmt: skip
        return model.state_dict(), seen

    (whole, epochs), (parts, again) = trained(None), trained(5)
    assert differ(whole, parts)  # sums are taken in another order
    for name, tensor in whole.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(parts[name], tensor, rtol=1e-9, atol=1e-12)  # type: ignore[index]
    assert [epoch.train_loss for epoch in again] == pytest.approx([epoch.train_loss for epoch in epochs], rel=1e-6)
    assert not differ(trained(12), trained(None))


def test_batch_norm_sees_the_parts() -> None:
    model, by_hand = (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in range(2))
    by_hand.load_state_dict(model.state_dict())
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: [(X, Y)], epochs=1, micro_batch=8)
    loss = sum(nn.functional.cross_entropy(by_hand(X[a:b]), Y[a:b]) * (b - a) / 12 for a, b in ((0, 8), (8, 12)))
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_parts_whose_gradients_lie_in_the_memory_of_a_graph() -> None:
    """What the first part has left there is another part's when a CUDA graph is replayed."""
    model, left = nn.Linear(4, 3), list[Tensor]()
    model.weight.register_post_accumulate_grad_hook(lambda p: left.append(p.grad))

    def objective(x: Tensor, y: Tensor) -> Tensor:
        if left:
            left[0].fill_(torch.nan)
        return nn.functional.cross_entropy(model(x), y)

    fit(
        model, torch.optim.SGD(model.parameters(), lr=0.1), lambda epoch: [(X, Y)], epochs=1, micro_batch=4,
        objective=objective,
    )  # fmt: skip
    assert len(left) == 3
    assert bool(model.weight.isfinite().all())


def test_measure_by_hand() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    # logits (0, x): class 1 where x > 0; loss log(1 + exp(∓x))
    batches = [
        (torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 0, 0])),
        (torch.tensor([[1.0]]), torch.tensor([0])),
    ]
    found = measure(model.train(), batches)
    assert found.accuracy == 2 / 4
    by_hand = sum(math.log1p(math.exp(z)) for z in (-2.0, -1.0, 3.0, 1.0)) / 4
    assert found.loss == pytest.approx(by_hand, rel=1e-6)
    assert model.training  # dropout was off meanwhile, and is on again
    measure(model.eval(), batches)
    assert not model.training
    with pytest.raises(LabError, match="the test set has no example"):
        measure(model, [])


def test_seeds_of_different_purposes_differ() -> None:
    seeds = [
        derive(0),
        derive(1),
        derive(0, "a"),
        derive(0, "a", 1),
        derive(0, "a", 2),
        derive(0, "b", 1),
        derive(10, 1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "epoch", 3) == derive(0, "epoch", 3)
    assert derive(7, "initial weights") == 53480765550019778  # a change of it changes every result
