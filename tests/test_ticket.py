"""Tickets: what the file holds and costs, what restoring writes, and the two controls."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import differ, same, train
from safetensors import safe_open
from safetensors.torch import load_file
from table import half
from torch import Tensor, nn
from torch.optim import SGD
from zoo import NETS, Tied

import tombola
from tombola import Fixed, Masks, Ticket
from tombola.ticket import model_tensors, reset

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def ticket_of(model: nn.Module, **provenance: Any) -> Ticket:
    return Ticket(half(model), model_tensors(model), provenance)


def tensor(*rows: str) -> Tensor:
    return torch.tensor([[bit == "1" for bit in row] for row in rows])


def bits_of(ticket: Ticket) -> list[Any]:
    return [dict(ticket.masks), dict(ticket.start), json.dumps(ticket.provenance)]


# ---- what it is


def test_dropped_weights_are_zero_and_nothing_is_shared() -> None:
    weight, bias = torch.tensor([[1.0, torch.nan, 3.0]], requires_grad=True), torch.ones(1)
    ticket = Ticket(Masks({"weight": tensor("101")}), {"weight": weight, "bias": bias}, {"a": 1})
    assert ticket.start["weight"].tolist() == [[1.0, 0.0, 3.0]]  # what is dropped may be anything
    assert not ticket.start["weight"].requires_grad
    bias.fill_(5)
    assert ticket.start["bias"].tolist() == [1.0]
    assert weight[0, 1].isnan()
    assert ticket.density == 2 / 3
    assert repr(ticket) == "Ticket(2 of 3 weights, density 0.6667)"
    assert ticket.provenance == {"a": 1}


# ---- the file


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A mask and start values, of any shape and floating type."""
    shape = draw(shapes)
    count = math.prod(shape)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool).view(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return mask, torch.randn(shape, generator=generator).to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=60)
@given(st.dictionaries(names, layers(), min_size=1, max_size=3), st.dictionaries(names, plain, max_size=3))
def test_a_file_gives_the_ticket_back(masked: dict[str, Any], provenance: dict[str, Any]) -> None:
    start = {name: value for name, (_, value) in masked.items()}
    start |= {"counter ": torch.tensor(7), "bytes ": torch.arange(5).byte(), "none ": torch.zeros(0, 3)}
    start |= {"narrow ": torch.ones(2).to(torch.float8_e4m3fn), "complex ": torch.ones(2, dtype=torch.complex64)}
    ticket = Ticket(Masks({name: mask for name, (mask, _) in masked.items()}), start, provenance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket"
        ticket.save(path)
        again = Ticket.load(path)
        once = path.read_bytes()
        again.save(path)
        assert path.read_bytes() == once
    assert again.masks == ticket.masks
    assert list(again.masks) == list(ticket.masks)
    assert not differ(dict(sorted(again.start.items())), dict(sorted(ticket.start.items())))
    assert again.provenance == json.loads(json.dumps(provenance))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", NETS)
def test_every_net_through_a_file(name: str, tmp_path: Path) -> None:
    model = NETS[name].model()
    train(model, SGD(model.parameters(), lr=0.1), NETS[name], range(2))
    ticket = ticket_of(model)
    ticket.save(tmp_path / "ticket.safetensors")
    other = NETS[name].model(seed=1)
    masks = Ticket.load(str(tmp_path / "ticket.safetensors")).restore(other)
    assert masks == ticket.masks
    for key, value in model.state_dict().items():  # the parameters, and batch norm's statistics and counter
        expected = value.masked_fill(~masks[key], 0) if key in masks else value
        if name != "tied":
            assert same(other.state_dict()[key], expected), key
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).masked_fill_(~mask, 0)
    model.eval(), other.eval()
    assert torch.equal(model(NETS[name].batch(0)), other(NETS[name].batch(0)))


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    model = Tied()
    ticket = ticket_of(model)
    assert set(ticket.start) == {"one.weight", "one.bias", "two.bias"}
    ticket.save(tmp_path / "ticket")
    other = Tied()
    Ticket.load(tmp_path / "ticket").restore(other)
    assert other.two.weight is other.one.weight
    assert same(other.two.weight.detach(), ticket.start["one.weight"])


def test_buffers_that_are_not_saved_with_the_model_are_not_in_the_ticket() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("kept", torch.ones(1))
    model.register_buffer("scratch", torch.ones(1), persistent=False)
    assert list(model_tensors(model)) == ["weight", "bias", "kept"]
    wrapped = torch.compile(model, backend="eager")
    assert list(model_tensors(wrapped)) == ["weight", "bias", "kept"]


def test_the_size_is_a_bit_a_weight_and_the_kept_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = Masks({f"layer {i}": torch.rand(400, 300, generator=generator) < 0.05 for i in range(3)})
    start = {name: torch.randn(400, 300, generator=generator) for name in masks} | {"bias": torch.ones(10)}
    path = tmp_path / "ticket"
    Ticket(masks, start, {"method": "a" * 200}).save(path)
    content = 3 * 400 * 300 / 8 + 4 * masks.kept + 40
    assert content < path.stat().st_size < content + 1500
    assert path.stat().st_size < 3 * 400 * 300 * 4 / 10


def test_plain_safetensors_can_read_it(tmp_path: Path) -> None:
    mask = tensor("1010", "0001")
    weight = torch.arange(8.0).view(2, 4)
    Ticket(Masks({"w": mask}), {"w": weight, "b": torch.ones(2)}, {"model": "mine"}).save(tmp_path / "ticket")
    tensors = load_file(tmp_path / "ticket")
    assert {name: entry.tolist() for name, entry in tensors.items()} == {
        "mask/w": [0b10100001],
        "start/w": [0.0, 2.0, 7.0],
        "start/b": [1.0, 1.0],
    }
    with safe_open(tmp_path / "ticket", framework="numpy") as file:
        about = file.metadata()
        assert np.unpackbits(file.get_tensor("mask/w"))[:8].tolist() == mask.int().flatten().tolist()
    assert about["format"] == "tombola-ticket-1"
    assert json.loads(about["shapes"]) == {"w": [2, 4]}
    assert json.loads(about["provenance"]) == {"model": "mine"}


def test_the_same_ticket_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in "abcde":
        ticket_of(NETS["conv"].model(), seed=3).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcde"}) == 1


def test_saving_over_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    ticket_of(NETS["mlp"].model(), seed=1).save(path)
    ticket_of(NETS["conv"].model(), seed=2).save(path)
    assert Ticket.load(path).provenance == {"seed": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["ticket"]


# ---- restoring


def test_restored_in_place_and_trained_on() -> None:
    model, other = NETS["conv"].model(), NETS["conv"].model(seed=1)
    ticket = ticket_of(model)
    storage = {name: value.data_ptr() for name, value in other.state_dict().items()}
    masks = ticket.restore(torch.compile(other, backend="eager"))
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == storage
    optimizer = SGD(other.parameters(), lr=0.1, momentum=0.9)
    run = tombola.attach(other, optimizer, Fixed(masks), steps=3)
    assert not differ(other.state_dict(), {name: ticket.start[name] for name in other.state_dict()})
    train(other, optimizer, NETS["conv"], range(3))
    assert run.masks == ticket.masks


def test_restored_at_the_precision_of_the_model() -> None:
    model = NETS["mlp"].model()
    ticket = ticket_of(model)
    other = NETS["mlp"].model(seed=1).to(torch.bfloat16)
    ticket.restore(other)
    assert same(other[0].weight.detach(), ticket.start["0.weight"].to(torch.bfloat16))  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(6, 10)), r"ticket: Sequential has no '2\.weight'; build the model .* strict=False"),
        (nn.Sequential(*NETS["mlp"].model(), nn.Linear(3, 3)), r"'5\.weight' of Sequential is not in the ticket"),
        (
            nn.Sequential(*NETS["mlp"].model()[:4], nn.Linear(8, 4)),  # type: ignore[index, misc]
            r"'4\.weight' has shape \(3, 8\) in the ticket, \(4, 8\) in Sequential",
        ),
    ],
    ids=["missing", "more", "shape"],
)
def test_strict_restoring_changes_nothing_if_anything_differs(other: nn.Module, message: str) -> None:
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        ticket_of(NETS["mlp"].model(seed=1)).restore(other)
    assert not differ(other.state_dict(), before)


def test_a_backbone_goes_into_a_net_with_another_head() -> None:
    ticket = ticket_of(NETS["mlp"].model())
    other = nn.Sequential(*NETS["mlp"].model(seed=1)[:4], nn.Linear(8, 7), nn.Linear(7, 2))  # type: ignore[index, misc]
    before = copy.deepcopy(other.state_dict())
    masks = ticket.restore(other, strict=False)
    assert list(masks) == ["0.weight", "2.weight"]
    after = other.state_dict()
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert same(after[name], ticket.start[name])
    for name in ("4.weight", "4.bias", "5.weight", "5.bias"):
        assert same(after[name], before[name])
    with pytest.raises(ValueError, match=r"no masked parameter fits this model; the ticket has 0\.weight, 2\.weight"):
        ticket.restore(nn.Linear(2, 2), strict=False)


# ---- controls


def test_shuffled_keeps_counts_and_values_of_each_layer() -> None:
    model = NETS["conv"].model()
    ticket = ticket_of(model, seed=3)
    before = torch.get_rng_state()
    one, again, other = (ticket.shuffled(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not differ(bits_of(one), bits_of(again))
    assert one.masks != other.masks
    for control, seed in ((one, 1), (other, 2)):
        assert control.masks != ticket.masks
        assert control.masks.counts() == ticket.masks.counts()
        for name, mask in ticket.masks.items():
            kept = control.start[name][control.masks[name]]
            assert not differ(kept.sort().values, ticket.start[name][mask].sort().values)
            assert not control.start[name][~control.masks[name]].any()
        others = set(ticket.start) - set(ticket.masks)
        assert not differ({n: control.start[n] for n in others}, {n: ticket.start[n] for n in others})
        assert control.provenance == {"seed": 3, "control": {"kind": "shuffled", "seed": seed}}
    assert ticket.provenance == {"seed": 3}


def test_reinitialised_keeps_the_masks_alone() -> None:
    model = NETS["conv"].model()
    train(model, SGD(model.parameters(), lr=0.1), NETS["conv"], range(2))
    ticket = ticket_of(model, seed=3)
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    one, again, other = (ticket.reinitialised(model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not differ(model.state_dict(), state)
    assert not differ(bits_of(one), bits_of(again))
    assert one.masks == other.masks == ticket.masks
    fresh = NETS["conv"].model()
    torch.manual_seed(1)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    expected = {
        n: t.masked_fill(~ticket.masks[n], 0) if n in ticket.masks else t for n, t in fresh.state_dict().items()
    }
    assert not differ({name: one.start[name] for name in expected}, expected)  # batch norm begins anew, too
    assert not same(one.start["0.weight"], other.start["0.weight"])
    assert one.provenance == {"seed": 3, "control": {"kind": "reinitialised", "seed": 1}}


def test_reinitialised_by_the_models_own_rule() -> None:
    class Own(nn.Linear):
        def reset_parameters(self) -> None:
            with torch.no_grad():
                self.weight.fill_(2.0)
                self.bias.fill_(3.0)

    ticket = ticket_of(nn.Linear(4, 2))
    control = ticket.reinitialised(torch.compile(Own(4, 2), backend="eager"))
    assert control.start["weight"].sum() == 2.0 * 4
    assert control.start["bias"].tolist() == [3.0, 3.0]


def test_attention_can_be_initialised_anew_and_a_bare_parameter_cannot() -> None:
    model = NETS["attention"].model()
    ticket = ticket_of(model)
    assert not same(ticket.reinitialised(model).start["attend.in_proj_weight"], ticket.start["attend.in_proj_weight"])
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"Module has parameters but no reset_parameters\(\); give it"):
        reset(bare)
