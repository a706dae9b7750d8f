"""How a network computes: precision, the order of memory, compiled code. Each does what it says and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from loop import differ
from torch import Tensor, nn
from torch.nn import functional as F

import tombola
from tombola.lab.errors import LabError
from tombola.lab.runs.compiling import compiled
from tombola.lab.runs.mode import Mode
from tombola.lab.runs.train import cross_entropy, fit, measure, objective_of

_draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 3, 8, 8, generator=_draw), torch.arange(24) % 4


PLAIN = Mode()


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    return [(X.roll(epoch + step, 0)[:16], Y.roll(epoch + step, 0)[:16]) for step in range(4)]


class Seen(nn.Module):
    """Tells how its inputs come."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[tuple[torch.dtype, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        output: Tensor = self.inner(x)
        self.seen.append((output.dtype, False))
        return output


# ---- precision and memory


def test_channels_last_is_of_activations_alone() -> None:
    model, mode = Seen(net()), Mode(channels_last=True)
    before = [p.stride() for p in model.parameters()]
    output = mode.outputs(model, X)
    assert model.seen[0] == (torch.float32, True)
    assert torch.allclose(output, model(X), atol=1e-5)
    objective_of(model, mode=mode)(X, Y).backward()
    assert [p.stride() for p in model.parameters()] == before
    assert [p.grad.stride() for p in model.parameters() if p.grad is not None] == before
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert mode.outputs(nn.Identity(), tokens) is tokens  # nothing to order


def test_bf16_computes_in_bf16_and_learns_in_float32() -> None:
    model, mode = Seen(net()), Mode(precision="bf16")
    output = mode.outputs(model, X)
    assert model.seen == [(torch.float32, False), (torch.bfloat16, False)]
    assert output.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(model(X).float(), Y)
    loss = objective_of(model, mode=mode)(X, Y)
    assert torch.equal(loss, expected)
    assert not torch.equal(loss, objective_of(model)(X, Y))
    loss.backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_measured_as_it_is_trained() -> None:
    model = net().eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(X).float()
    found = measure(model, [(X, Y)], mode=Mode(precision="bf16"))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, Y)), rel=1e-6)
    assert found.accuracy == float((logits.argmax(1) == Y).float().mean())
    assert found.loss != measure(model, [(X, Y)]).loss


def test_the_loss_is_looked_at_now_and_then() -> None:
    model, seen = nn.Linear(8, 4), []

    def endless(epoch: int) -> Any:
        for step in range(1000):
            seen.append(step)
            yield X[0, 0], Y[:8]

    def objective(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y) * (math.nan if len(seen) > 20 else 1.0)

    with pytest.raises(LabError, match="the training loss is nan in epoch 1; lower the learning rate"):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.0), endless, epochs=1, objective=objective)
    assert len(seen) == 100


# ---- compiled code


def state_of(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(
    wrap: Callable[..., Any],
    *,
    dropout: float = 0.0,
    cuts: tuple[int, ...] = (3,),
    method: Any = None,
    mode: Mode = PLAIN,
) -> Any:
    """All that there is after three epochs; after each cut but the last all is loaded into new objects."""
    states: list[Any] = []
    losses: list[float] = []
    done = 0
    for upto in cuts:
        torch.compiler.reset()  # another process has compiled nothing yet
        model = net(dropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        run = method and tombola.attach(model, optimizer, method, steps=12)
        if states:
            model.load_state_dict(states[0])
            if run:
                run.load_state_dict(states[2])
            optimizer.load_state_dict(states[1])
        objective = wrap(objective_of(model, mode=mode), model)
        fit(
            model, optimizer, batches, epochs=upto, done=done, objective=objective,
            after_epoch=lambda epoch: losses.append(epoch.train_loss),
        )  # fmt: skip
        done, states = upto, copy.deepcopy([model.state_dict(), optimizer.state_dict(), run and run.state_dict()])
    return states, losses


def as_it_is(objective: Any, model: nn.Module) -> Any:
    return objective


def by(backend: Any, told: list[str], batch_size: int = 16) -> Callable[..., Any]:
    return partial(compiled, batch_size=batch_size, tell=told.append, backend=backend)


METHODS = {
    "dense": None,
    "rigl": tombola.RigL(density=0.3, every=2),
    "cs": tombola.ContinuousSparsification(initial_score=0.1),
}


@pytest.mark.parametrize("name", METHODS)
def test_compiled_training_is_the_same_training(name: str) -> None:
    """With a backend that reorders no arithmetic all is equal bit by bit, while masks move and soft ones change."""
    told: list[str] = []
    plain = trained(as_it_is, method=METHODS[name])
    fast = trained(by("aot_eager", told), method=METHODS[name])
    stopped = trained(by("aot_eager", told), method=METHODS[name], cuts=(1, 3))
    assert told == []
    assert not differ(plain, fast)
    assert not differ(plain, stopped)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
@pytest.mark.parametrize("mode", [Mode(), Mode(precision="bf16", channels_last=True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiled_by_inductor(dropout: float, mode: Mode) -> None:
    told: list[str] = []
    fast = partial(trained, by("inductor", told), method=METHODS["rigl"], mode=mode)
    straight, stopped = fast(dropout=dropout), fast(dropout=dropout, cuts=(1, 3))
    assert told == []
    assert not differ(straight, stopped)
    if not dropout:
        plain = trained(as_it_is, method=METHODS["rigl"], mode=mode)
        assert straight[1] == pytest.approx(plain[1], rel=2e-2 if mode.precision == "bf16" else 1e-4)


def test_trying_out_leaves_no_trace() -> None:
    model = net(0.5)
    model.register_buffer("constant", torch.zeros(1).expand(5))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: pytest.fail("a gradient was gathered"))
    before, drawn, x = state_of(model), torch.get_rng_state(), X.clone()
    calls: list[str] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        calls.append("loss")
        return cross_entropy(output, labels)

    def spy(*arguments: Any) -> Any:
        assert not differ(before, state_of(model))
        assert torch.equal(torch.get_rng_state(), drawn)
        raise KeyboardInterrupt

    told: list[str] = []
    objective = compiled(objective_of(model, loss=loss), model, batch_size=24, tell=told.append, backend="eager")
    model[0].register_forward_pre_hook(lambda *_: spy() if len(calls) == 6 else None)  # of the call that counts
    with pytest.raises(KeyboardInterrupt):
        objective(x, Y)
    assert told == []
    assert torch.equal(x, X)
    assert all(p.grad is None for p in model.parameters())


def test_batches_of_another_size_are_not_compiled_for() -> None:
    compiled_for: list[torch.Size] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        compiled_for.extend(x.shape for x in inputs if x.ndim == 4 and x.shape[1] == 3 and len(x) > 6)
        return graph

    model = net()
    objective = by(backend, [])(objective_of(model), model)
    for size in (7, 16, 9, 16):
        assert objective(X[:size], Y[:size]) == objective_of(model)(X[:size], Y[:size])
    assert compiled_for == [torch.Size([16, 3, 8, 8])]


def test_what_cannot_be_compiled_is_trained_as_it_is() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise RuntimeError("no such\n instruction")

    told: list[str] = []
    assert not differ(trained(as_it_is), trained(by(backend, told)))
    assert len(told) == 1
    assert told[0].startswith("compile: trained without torch.compile: BackendCompilerFailed: ")
    assert "RuntimeError: no such instruction" in told[0]


class Stale:
    """A backend whose code remembers what it should have read anew: one of its inputs, as it was at first."""

    def __init__(self, wanted: Callable[[Tensor], bool]) -> None:
        self.wanted, self.old = wanted, dict[int, Tensor]()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        def run(*arguments: Any) -> Any:
            for place, value in enumerate(arguments):
                if isinstance(value, Tensor) and self.wanted(value):
                    self.old.setdefault(place, value.detach().clone())
            return graph(*(self.old.get(place, value) for place, value in enumerate(arguments)))

        return run


@pytest.mark.parametrize(
    "wanted",
    [lambda t: t.shape == X[:16].shape, lambda t: t.shape == (6, 3, 3, 3), lambda t: t.shape == Y[:16].shape],
    ids=["inputs", "weights", "labels"],
)
def test_code_that_reads_what_was_there_before_is_found_out(wanted: Callable[[Tensor], bool]) -> None:
    told: list[str] = []
    stale = trained(by(Stale(wanted), told))
    assert told == ["compile: trained without torch.compile: its loss or gradients are not those of the model as it is"]
    assert not differ(stale, trained(as_it_is))
