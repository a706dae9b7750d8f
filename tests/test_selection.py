"""Which parameters get a mask, and why not the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from zoo import NETS, Language, Tied

from tombola import maskable
from tombola.selection import unwrapped

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Everything(nn.Module):
    """A parameter of each kind that is left out by default, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Embedding(5, 4)
        self.bag = nn.EmbeddingBag(5, 4)
        self.scale = nn.Parameter(torch.ones(3))
        self.table = nn.Parameter(torch.ones(3, 3))
        self.cell = nn.GRUCell(4, 2)
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.counts = nn.Parameter(torch.ones(2, 2, dtype=torch.int32), requires_grad=False)


@pytest.mark.parametrize("name", NETS)
def test_the_zoo(name: str) -> None:
    model = NETS[name].model()
    found = maskable(model)
    assert tuple(found) == NETS[name].masked
    names = dict(model.named_parameters())
    assert all(found[layer] is names[layer] for layer in found)
    assert {*found, *found.others} == set(names)
    assert not {*found} & {*found.others}


def test_each_other_parameter_has_its_reason() -> None:
    found = maskable(Everything())
    assert list(found) == ["conv.weight", "cell.weight_ih", "cell.weight_hh"]
    assert found.others == {
        "scale": "one-dimensional (Everything)",
        "table": "a parameter of Everything, which is not masked by default",
        "counts": "torch.int32 is not a floating point type",
        "conv.bias": "a bias",
        "norm.weight": "one-dimensional (BatchNorm2d)",
        "norm.bias": "a bias",
        "embed.weight": "an embedding, or tied to one",
        "bag.weight": "an embedding, or tied to one",
        "cell.bias_ih": "a bias",
        "cell.bias_hh": "a bias",
        "bilinear.weight": "a parameter of Bilinear, which is not masked by default",
        "bilinear.bias": "a bias",
        "frozen.weight": "frozen (requires_grad=False)",
        "frozen.bias": "frozen (requires_grad=False)",
    }


def test_attention_biases_are_left_out() -> None:
    model = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    assert list(maskable(model)) == ["in_proj_weight", "out_proj.weight"]
    assert set(maskable(model).others) == {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}


# ---- tied weights


def test_a_tied_weight_counts_once_under_its_first_name() -> None:
    model = Tied()
    found = maskable(model)
    assert list(found) == ["one.weight"]
    assert "two.weight" not in found.others
    assert found["one.weight"] is model.two.weight


def test_a_weight_tied_to_an_embedding_stays_dense_unless_it_is_asked_for() -> None:
    model = Language()
    assert maskable(model).others["embed.weight"] == "an embedding, or tied to one"
    assert list(maskable(model, ["embed.weight"])) == ["embed.weight"]
    assert list(maskable(model, nn.Embedding)) == ["embed.weight"]
    # a name for the parameter that named_parameters() does not give is not one
    with pytest.raises(ValueError, match=r"no parameter 'out\.weight'; it has embed\.weight, middle\.weight"):
        maskable(model, ["out.weight"])


# ---- choosing


def test_names() -> None:
    model = Everything()
    assert list(maskable(model, ["table", "conv.weight"])) == ["table", "conv.weight"]
    assert list(maskable(model, "bilinear.weight")) == ["bilinear.weight"]
    assert list(maskable(model, (name for name in ["scale"]))) == ["scale"]
    found = maskable(model, ["conv.bias"])
    assert list(found) == ["conv.bias"]
    assert set(found.others.values()) == {"not selected"}


def test_a_predicate_thins_the_default_choice_out() -> None:
    seen = []

    def wide(name: str, parameter: nn.Parameter) -> bool:
        seen.append(name)
        return parameter.shape[0] > 4

    found = maskable(Everything(), wide)
    assert list(found) == ["cell.weight_ih", "cell.weight_hh"]
    assert seen == ["conv.weight", "cell.weight_ih", "cell.weight_hh"]
    assert found.others["conv.weight"] == "not selected"


@pytest.mark.parametrize(
    ("select", "names"),
    [
        (nn.Bilinear, ["bilinear.weight"]),
        ([nn.Bilinear, nn.Conv2d], ["conv.weight", "bilinear.weight"]),
        ((Everything,), ["table"]),
        (nn.RNNCellBase, ["cell.weight_ih", "cell.weight_hh"]),
        (nn.Module, ["table", "conv.weight", "embed.weight", "bag.weight", "cell.weight_ih", "cell.weight_hh",
                     "bilinear.weight"]),
    ],
    ids=["one", "two", "own", "base", "all"],
)  # fmt: skip
def test_types(select: type[nn.Module] | list[type[nn.Module]], names: list[str]) -> None:
    found = maskable(Everything(), select)
    assert list(found) == names
    assert found.others["norm.weight"] == "one-dimensional (BatchNorm2d)"
    if "conv.weight" not in names:
        assert found.others["conv.weight"] == "a parameter of Conv2d, not of a selected type"


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (["nowhere"], r"no parameter 'nowhere'; it has scale, table, counts, conv\.weight"),
        (["frozen.weight"], r"'frozen\.weight' cannot be masked: frozen"),
        (["counts"], r"'counts' cannot be masked: torch\.int32"),
        ([], r"nothing to mask in Everything \(scale: not selected; .*\); choose parameters with select="),
        (nn.LSTM, r"nothing to mask in Everything \(.*conv\.weight: a parameter of Conv2d, not of a selected type"),
        (lambda name, parameter: False, r"nothing to mask in Everything \(.*conv\.weight: not selected"),
        (3, r"select: pass parameter names, module types, or a predicate"),
        (["conv.weight", nn.Linear], r"select: pass parameter names, module types, or a predicate"),
        ([int], r"select: pass parameter names, module types, or a predicate"),
        (nn.Linear(2, 2), r"select: pass parameter names, module types, or a predicate"),
    ],
)
def test_wrong_choices(select: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maskable(Everything(), select)  # type: ignore[arg-type]


def test_models_with_nothing() -> None:
    with pytest.raises(ValueError, match=r"nothing to mask in ReLU \(it has no parameters\)"):
        maskable(nn.ReLU())
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        maskable([nn.Linear(2, 2)])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_named_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    assert list(maskable(model)) == ["1.weight"]
    assert "not initialised yet" in maskable(model).others["0.weight"]
    model(torch.ones(1, 4))
    assert list(maskable(model)) == ["0.weight", "1.weight"]


# ---- wrappers


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="gloo rendezvous by file")
def test_names_are_plain_inside_distributed_wrappers(alone: None) -> None:
    model = NETS["mlp"].model()
    compiled = partial(torch.compile, backend="eager")
    for wrapped in (
        DistributedDataParallel(model),
        compiled(DistributedDataParallel(model)),
        DistributedDataParallel(compiled(model)),
    ):
        assert unwrapped(wrapped) is model
        found = maskable(wrapped)
        assert tuple(found) == NETS["mlp"].masked
        assert found["0.weight"] is model[0].weight  # type: ignore[index]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["parallel", "compile"]
)
def test_names_are_plain_inside_wrappers(wrap: partial[nn.Module]) -> None:
    model = NETS["mlp"].model()
    for wrapped in (wrap(model), wrap(nn.DataParallel(model)), nn.DataParallel(wrap(model))):
        assert unwrapped(wrapped) is model
        assert tuple(maskable(wrapped)) == NETS["mlp"].masked
        assert list(maskable(wrapped, ["2.bias"])) == ["2.bias"]


def test_a_part_that_is_compiled_keeps_the_name_that_named_parameters_gives() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"), nn.Linear(3, 2))
    assert list(maskable(model)) == ["0._orig_mod.weight", "1.weight"]
