"""The main promises once more, on CUDA where there is one: they are collected anew, with every net and batch there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import test_gradients
import test_properties
import test_resume
import torch
from loop import loss_of, same, train
from table import METHODS, Entry, world
from test_gradients import WITHOUT_WAITING, Loop
from test_properties import (  # noqa: F401
    test_a_step_that_loss_scaling_skips_changes_nothing,
    test_accumulated_gradients_are_those_of_one_large_batch,
    test_bf16_autocast,
    test_clipping_sees_live_weights_only,
    test_copies_of_the_model_are_plain_models,
    test_counts_are_exact,
    test_detach_leaves_the_ticket_in_a_plain_model,
    test_dropped_weights_are_exactly_zero,
    test_each_parameter_group_has_its_own_learning_rate,
    test_every_kind_of_layer,
    test_frozen_parameters_are_left_alone,
    test_gradients_and_optimizer_state_at_dropped_weights_are_zero,
    test_keys_parameters_and_storage_stay,
    test_nothing_learns_at_a_learning_rate_of_zero,
    test_one_compilation_while_masks_change,
    test_parameters_without_gradient_in_a_step,
    test_schedulers_made_before_and_after_are_followed,
)
from test_resume import (  # noqa: F401
    test_a_custom_score_optimizer_goes_on_too,
    test_a_state_is_a_snapshot,
    test_going_on_equals_never_having_stopped,
)
from zoo import NETS

from tombola import Masks, Ticket
from tombola.bits import PackedMask
from tombola.masks import largest
from tombola.ticket import model_tensors

DEVICE = "cuda"
if not torch.cuda.is_available():
    pytest.skip("no CUDA device: the promises are only tried on the CPU", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:no weight is left in ")
every_method = pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)


@pytest.fixture(autouse=True)
def _there(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = {name: replace(net, device=DEVICE) for name, net in NETS.items()}
    monkeypatch.setattr(test_properties, "NETS", nets)
    monkeypatch.setattr(test_properties, "MLP", nets["mlp"])
    monkeypatch.setattr(test_resume, "NET", nets["conv"])
    monkeypatch.setattr(test_gradients, "NET", nets["mlp"])
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # what is compared bit by bit is trained twice


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@every_method
def test_everything_lies_there(entry: Entry) -> None:
    net = replace(NETS["conv"], device=DEVICE)
    it = world(entry, "adam", net, 6)
    train(it.model, it.optimizer, net, range(6))
    lying = [*it.run.masks.values(), *it.run.scores.values(), *it.run.weights.values(), *it.model.parameters()]
    assert {tensor.device.type for tensor in lying} == {DEVICE}


@pytest.mark.parametrize("method", WITHOUT_WAITING.values(), ids=WITHOUT_WAITING)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_device(method: object) -> None:
    loop = Loop(method, steps=400)
    loop.train(range(2))  # makes what is made once
    for step in range(2, 6):
        loop.optimizer.zero_grad()
        loss_of(loop.model, test_gradients.NET.batch(step)).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop.optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_found(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_gradients.ATTACH, "LOOK", 5)
    loop = Loop(None)
    loop.train(range(5), bad=(2,), value=value)
    with pytest.raises(FloatingPointError, match="not finite in one of the steps 1 to 4"):
        loop.train(range(5, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3,), (5, 7), (3, 4, 5, 2), (300, 1000)], ids=str)
def test_packed_masks(dtype: torch.dtype, shape: tuple[int, ...], draw: torch.Generator) -> None:
    values = torch.randn(shape, generator=draw).to(dtype)
    mask = torch.rand(shape, generator=draw) < 0.4
    values.view(-1)[0], mask.view(-1)[0] = torch.nan, False
    there = values.to(DEVICE)
    packed = PackedMask(mask.to(DEVICE), there)
    assert torch.equal(packed.bytes.cpu(), PackedMask(mask, values).bytes)
    assert torch.equal(packed.mask().cpu(), mask)
    packed.clear(there)
    assert torch.equal(there.cpu(), torch.where(mask, values, 0))


def test_ties_are_settled_as_on_the_cpu(draw: torch.Generator) -> None:
    values = torch.randint(5, (1000,), generator=draw).float()
    for keep in (1, 137, 999):
        there, here = (
            largest(values.to(device), keep, generator=torch.Generator().manual_seed(1)) for device in (DEVICE, "cpu")
        )
        assert torch.equal(there.cpu(), here)


def test_a_ticket_from_there(tmp_path: Path) -> None:
    net = replace(NETS["conv"], device=DEVICE)
    it = world(METHODS["rigl"], "momentum", net, 6)
    train(it.model, it.optimizer, net, range(6))
    ticket = Ticket(it.run.masks, model_tensors(it.model))
    it.run.detach()
    ticket.save(tmp_path / "t.safetensors")
    loaded = Ticket.load(tmp_path / "t.safetensors")
    for device in (DEVICE, "cpu"):
        model = replace(net, device=device).model(seed=1)
        assert loaded.restore(model) == it.run.masks
        assert same(model.state_dict(), it.model.state_dict())
    assert loaded.shuffled(seed=3).masks == ticket.shuffled(seed=3).masks
    assert Masks(dict(it.run.masks)).digest() == loaded.masks.digest()
