"""The papers' experiments: what their recipes say, that they are fair, and that each of them runs."""

from __future__ import annotations

import copy
import csv
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from tombola.budgets import uniform
from tombola.lab import models
from tombola.lab.cli.commands import cli
from tombola.lab.cli.computing import Computing
from tombola.lab.cli.main import run
from tombola.lab.cli.recipes import RECIPES as TRAINED
from tombola.lab.cli.reproducing import _checked
from tombola.lab.config import RunConfig
from tombola.lab.data import load
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Text
from tombola.lab.methods import Dense
from tombola.lab.recipes import RECIPES, SCALES, Recipe, Scale, find
from tombola.lab.recipes.base import stretched
from tombola.lab.recipes.baselines import arithmetic, schedules
from tombola.lab.recipes.nets import CONV6
from tombola.lab.recipes.relaxation import curves
from tombola.lab.recipes.rigl_imagenet import MOBILENET_SMALL, RESNET50_SMALL
from tombola.lab.report.experiments import experiments
from tombola.lab.report.page import write_report
from tombola.lab.runs.experiment import execute
from tombola.lab.runs.how import How
from tombola.lab.runs.looking import read_metrics
from tombola.lab.settings import SGD, Adam, Constant, Cosine, Drops, WarmUp
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.magnitude import IMP
from tombola.methods.moves import Moves
from tombola.methods.rigl import RigL
from tombola.methods.static import Static
from tombola.methods.stochastic import StochasticSparsification

TRAINING = [recipe for recipe in RECIPES if recipe.configs is not None]
EACH = pytest.mark.parametrize("recipe", TRAINING, ids=lambda recipe: recipe.name)


@cache
def configs(name: str, scale: Scale) -> tuple[RunConfig, ...]:
    recipe = find(name)
    assert recipe.configs is not None
    return tuple(recipe.configs(scale))


def full(name: str, kind: type) -> list[RunConfig]:
    return [config for config in configs(name, "full") if type(config.method) is kind]


def of(config: RunConfig) -> tuple[object, ...]:
    """What a dense net must have in common with the runs that it is compared with."""
    return config.data, config.inputs, config.model, config.epochs, config.batch_size, config.augment, config.examples


# ---- what they say


def test_names_and_texts() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names) >= 13
    for recipe in RECIPES:
        for text in (recipe.paper, recipe.where, recipe.about, recipe.departures, recipe.methods):
            assert text
        assert (recipe.configs is None) != (recipe.draw is None)
        if recipe.configs is not None:
            assert recipe.text("cpu").startswith(recipe.text("full"))
            assert f"Reduced (cpu scale): {recipe.cpu}" in recipe.text("cpu")
            assert "Reduced (smoke scale): " in recipe.text("smoke")
            assert "educed" not in recipe.text("full")


@pytest.mark.parametrize("name", ["cs-figure-3-right", "cs-neurips-tickets", "cs-neurips-pruning", "cs-imagenet"])
def test_what_is_from_memory_is_owned_up_to(name: str) -> None:
    for scale in SCALES:
        assert "from memory" in find(name).text(scale)


def test_no_such_recipe_or_scale() -> None:
    with pytest.raises(LabError, match=r"there is no experiment 'x'; there is cs-figure-1, .*rigl-gru"):
        find("x")
    with pytest.raises(LabError, match=r"--scale tiny: there is smoke, cpu, full"):
        find("rigl-lenet").runs("tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_data_that_nobody_named(scale: Scale) -> None:
    for name in ("rigl-gru", "cs-figure-2"):
        with pytest.raises(LabError, match=r"say where .* is with --data-dir"):
            find(name).runs(scale)


# ---- fair at every scale


@EACH
@pytest.mark.parametrize("scale", SCALES)
def test_runs_are_whole_and_different(recipe: Recipe, scale: Scale, tmp_path: Path) -> None:
    found = recipe.runs(scale, data_dir=tmp_path)
    hashes = {config.content_hash for config in found}
    assert len(hashes) == len(found) > 0
    seeds = (0,) if scale == "smoke" else (0, 1, 2)
    assert {config.seed for config in found} == set(seeds)
    alike: dict[str, list[int]] = {}
    for config in found:
        assert RunConfig.from_json(config.to_json()) == config
        alike.setdefault(replace(config, seed=0).content_hash, []).append(config.seed)
    assert all(sorted(own) == list(seeds) for own in alike.values())
    assert recipe.epochs(scale) == sum(config.total_epochs for config in found)
    assert {config.seed for config in recipe.runs(scale, seeds=(7,), data_dir=tmp_path)} == {7}


@EACH
@pytest.mark.parametrize("scale", SCALES)
def test_dense_nets_are_given_as_much(recipe: Recipe, scale: Scale) -> None:
    found = configs(recipe.name, scale)
    dense = [config for config in found if isinstance(config.method, Dense)]
    own = {}
    for config in found:
        if isinstance(config.method, Dense):
            continue
        alike = [other for other in dense if of(other) == of(config)]
        width = min(config.width, max(other.width for other in alike))  # big sparse nets are held against the usual one
        beside = [other for other in alike if other.width == width]
        same = [other for other in beside if other.schedule == config.schedule]
        lengths = {other.total_epochs for other in same}
        first = own.setdefault((*of(config), config.method_name), config)
        if config.schedule != first.schedule:  # another schedule of a run that is there with its own
            continue
        assert config.epochs in lengths, "dense at equal epochs"
        assert config.width > width or max(1, round(arithmetic(config))) in lengths, "dense at equal arithmetic"
        if config.searches:
            assert max(lengths) >= config.epochs * (config.rounds + 1), "dense as long as the search"


@EACH
@pytest.mark.parametrize("scale", SCALES)
def test_each_method_has_a_cosine_and_steps(recipe: Recipe, scale: Scale) -> None:
    """Each of the comparison at one of its settings at least, dense nets included; RigL+ alone has its own schedule."""
    tried: dict[tuple[object, ...], set[type]] = {}
    for config in configs(recipe.name, scale):
        method = config.method
        asked, rewinds = getattr(method, "density", None) is not None, getattr(method, "rewind", None)
        kind = (config.data, config.model, config.method_name, asked, rewinds, config.lottery)
        tried.setdefault(kind, set()).add(_kind(config))
    for kind, found in tried.items():
        assert {Cosine, Drops} <= found or kind[1:3] == ("lenet_100_69", "rigl"), kind


def _kind(config: RunConfig) -> type:
    return type(config.schedule.then if isinstance(config.schedule, WarmUp) else config.schedule)


@EACH
@pytest.mark.parametrize("scale", SCALES)
def test_tickets_have_controls(recipe: Recipe, scale: Scale) -> None:
    """Those of searches, of lottery initialisation, and supermasks, which are tickets that nobody trains."""
    found: dict[tuple[str, str, str, str], list[RunConfig]] = {}
    for config in configs(recipe.name, scale):
        if config.finds_tickets:
            found.setdefault((config.data, config.model, config.method_name, config.setting), []).append(config)
    assert bool(found) == recipe.name.startswith(
        ("cs-figure", "cs-readme", "cs-neurips-tickets", "transfer", "rigl-lo")
    )
    for same in found.values():
        controlled = [config for config in same if config.controls]
        assert controlled
        for config in controlled:
            assert set(config.controls) == {"shuffled", "reinitialised"}
            assert config.control_rounds[-1] == config.rounds
        assert all(config.retrain == "all" or config.supermask for config in same)  # every training is counted


@pytest.mark.parametrize("name", ["cs-figure-3-left", "cs-figure-3-right", "cs-neurips-tickets"])
def test_controls_stand_at_the_densities_that_are_compared(name: str) -> None:
    """And not only at the last round of IMP, where a thousandth of the weights is left and nobody looks."""
    for config in full(name, IMP):
        if config.controls:
            densities = [_left(config) ** round_ for round_ in config.control_rounds]
            for wanted in (0.3, 0.1, 0.05):
                assert any(max(d, wanted) / min(d, wanted) < 1.7 for d in densities), densities
    for config in full(name, ContinuousSparsification):
        assert not config.controls or config.control_rounds == (1, 2, config.rounds)


def _left(config: RunConfig) -> float:
    """The share of its weights that a round of IMP leaves; of layers that differ, the tenth root of ten rounds'."""
    assert isinstance(config.method, IMP)
    keep = config.method.keep
    if isinstance(keep, float):
        return keep
    sizes = {name: models.conv6().get_parameter(name).numel() for name in keep}
    return (sum(size * keep[name] ** 10 for name, size in sizes.items()) / sum(sizes.values())) ** 0.1


@EACH
def test_scales_shrink(recipe: Recipe) -> None:
    smoke, cpu, whole = (recipe.epochs(scale) for scale in SCALES)
    assert smoke < 80
    assert smoke < cpu < whole
    kinds = [{config.method_name for config in configs(recipe.name, scale)} for scale in SCALES]
    assert kinds[0] == kinds[1] == kinds[2]


def test_schedules_of_both_kinds() -> None:
    base = configs("rigl-cifar10", "full")[0]
    assert [run.schedule for run in schedules(replace(base, schedule=Constant()))] == [
        Constant(), Cosine(), Drops(epochs=(125, 187), by=0.1)
    ]  # fmt: skip
    warm = WarmUp(epochs=5, then=Drops(epochs=(30,), by=0.1))
    assert [run.schedule for run in schedules(replace(base, schedule=warm))] == [warm, WarmUp(epochs=5, then=Cosine())]
    assert stretched(Drops(epochs=(56, 71), by=0.1), 85, 170) == Drops(epochs=(112, 142), by=0.1)
    longer = stretched(warm, 100, 500)
    assert longer == WarmUp(epochs=5, then=Drops(epochs=(150,), by=0.1))


# ---- the papers' numbers


def test_supermasks_are_the_papers() -> None:
    cs, ss = full("cs-figure-2", ContinuousSparsification), full("cs-figure-2", StochasticSparsification)
    assert all(config.supermask and config.epochs == 100 and config.batch_size == 60 for config in (*cs, *ss))
    assert {min(c.method.penalty for c in cs), max(c.method.penalty for c in cs)} == {1e-11, 1e-7}  # type: ignore[union-attr]
    assert {c.method.final_temperature for c in cs} == {100.0}  # type: ignore[union-attr]
    assert {c.score_optimizer for c in cs} == {Adam(lr=3e-4)}
    scores = [c.method.initial_score for c in ss]  # type: ignore[union-attr]
    assert (min(scores), max(scores)) == (-5, 5)
    assert {c.score_optimizer for c in ss} == {SGD(lr=100.0, momentum=0.0)}


def test_conv6_tickets_are_the_papers() -> None:
    imp, iss, cs = (
        full("cs-figure-3-left", kind) for kind in (IMP, StochasticSparsification, ContinuousSparsification)
    )
    for config in (*imp, *iss, *cs):
        assert (config.epochs, config.batch_size, config.optimizer, config.rewind_step) == (40, 60, Adam(lr=3e-4), 0)
    assert {c.rounds for c in imp} == {c.rounds for c in iss} == {30}
    assert {c.rounds for c in cs} == {4}
    keep = imp[0].method.keep  # type: ignore[union-attr]
    net = models.conv6()
    left = sum(net.get_parameter(name).numel() * share**30 for name, share in keep.items())
    assert left / sum(p.numel() for p in net.parameters() if p.dim() > 1) == pytest.approx(0.0045, abs=5e-4)
    assert (iss[0].method.initial_score, iss[0].method.penalty) == (1.0, 1e-8)  # type: ignore[union-attr]
    assert iss[0].score_optimizer == SGD(lr=20.0, momentum=0.0)
    scores = {c.method.initial_score for c in cs}  # type: ignore[union-attr]
    assert (min(scores), max(scores)) == (-0.03, 0.03)
    assert {(c.method.final_temperature, c.method.penalty, c.method.rewind) for c in cs} == {(100.0, 1e-10, False)}  # type: ignore[union-attr]
    assert imp[0].total_epochs - 2 * 5 * 40 == 31 * 40  # 30 rounds and the last ticket's own training, without controls


@pytest.mark.parametrize("name", ["cs-figure-3-right", "cs-readme", "cs-neurips-tickets"])
def test_resnet20_tickets_are_the_papers(name: str) -> None:
    for config in (*full(name, ContinuousSparsification), *full(name, IMP)):
        assert (config.epochs, config.batch_size, config.augment, config.rewind_step) == (85, 128, True, 780)
        assert config.optimizer == SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        assert config.schedule in (Drops(epochs=(56, 71), by=0.1), Cosine())
        if config.model == "resnet20":
            net = models.resnet20()
            masked = {n: p for n, p in net.named_parameters() if p.dim() > 1 and n not in config.unmasked}
            assert sum(p.numel() for p in masked.values()) == 267_696
    for config in full(name, ContinuousSparsification):
        assert config.score_optimizer == SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
        assert (config.method.penalty, config.method.final_temperature) == (1e-8, 200.0)  # type: ignore[union-attr]
        assert config.rounds == (3 if name == "cs-readme" else 5)
    assert {config.rounds for config in full(name, IMP)} == {"cs-figure-3-right": {30}, "cs-neurips-tickets": {18}}.get(
        name, set()
    )


def test_the_authors_code_beside_the_papers_rules() -> None:
    rules = {
        (c.method.anneal, c.method.scale, c.method.round_rule) for c in full("cs-readme", ContinuousSparsification)
    }  # type: ignore[union-attr]
    assert rules == {("epoch", "initial", "code"), ("step", "none", "paper")}


def test_batch_norm_takes_the_codes_factor_out() -> None:
    """Why tickets of cs-readme may do without it: twice the masked weights, the same outputs, the same steps."""
    (config, *_) = full("cs-readme", ContinuousSparsification)
    one = models.build("resnet20", input_shape=(3, 32, 32), classes=10, seed=0, width=0.25)
    two = copy.deepcopy(one)
    masked = [name for name, weight in one.named_parameters() if weight.dim() > 1 and name not in config.unmasked]
    with torch.no_grad():
        for name in masked:
            two.get_parameter(name).mul_(2)
    x, y = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    outputs = [net(x) for net in (one, two)]
    assert torch.allclose(*outputs, atol=1e-3)
    for output in outputs:
        torch.nn.functional.cross_entropy(output, y).backward()
    for name in masked:
        plain, scaled = one.get_parameter(name).grad, two.get_parameter(name).grad
        assert plain is not None
        assert scaled is not None
        assert float((plain - 2 * scaled).norm() / plain.norm()) < 1e-2, name  # d/dw of f(2w) is twice f'(2w)


def test_eighteen_rounds_leave_as_much_as_published() -> None:
    (vgg, *_) = [c for c in full("cs-neurips-tickets", IMP) if c.model == "vgg16"]
    assert vgg.method.keep**vgg.rounds == pytest.approx(0.018, abs=2e-4)  # type: ignore[union-attr, operator]
    assert {c.method.rewind for c in full("cs-neurips-tickets", IMP)} == {True, False}  # type: ignore[union-attr]


def test_wrn_22_2_is_the_papers() -> None:
    runs = configs("rigl-cifar10", "full")
    assert {c.epochs for c in runs} == {250, 500}
    assert {c.method.density for c in runs if not isinstance(c.method, Dense)} == {0.5, 0.2, 0.1, 0.05}  # type: ignore[union-attr]
    rigl = full("rigl-cifar10", RigL)
    assert {(c.epochs, c.method.density) for c in rigl} == {(e, d) for e in (250, 500) for d in (0.5, 0.2, 0.1, 0.05)}  # type: ignore[union-attr]
    for config in rigl:
        assert isinstance(config.method, RigL)
        assert (config.method.every, config.method.drop_fraction) == (100, 0.3)
        assert config.method.until * 97_656 == pytest.approx(75_000)
        assert config.optimizer == SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        assert config.unmasked == ("conv1.weight",)
    (twice, *_) = [c for c in rigl if c.epochs == 500]
    assert twice.schedule == Drops(epochs=(154, 308, 460), by=0.2)
    gmp = full("rigl-cifar10", GradualMagnitude)[0].method
    assert isinstance(gmp, GradualMagnitude)
    assert (round(gmp.begin * 97_656), round(gmp.until * 97_656), gmp.every) == (20_000, 75_000, 1000)
    # RigL (ERK) at a tenth costs 0.174 of dense and the dense gradients of one step in 101
    (tenth, *_) = [c for c in rigl if c.method.density == 0.1]  # type: ignore[union-attr]
    assert arithmetic(tenth) / 250 == pytest.approx(0.1742 + (1 - 0.1742) / 303, abs=5e-4)


@pytest.mark.parametrize(("name", "densities"), [
    ("rigl-resnet50", {0.2, 0.1, 0.05, 0.035}), ("rigl-mobilenet", {0.25, 0.2, 0.1, 0.05, 0.035})
])  # fmt: skip
def test_imagenet_is_the_papers(name: str, densities: set[float]) -> None:
    runs = configs(name, "full")
    assert {c.epochs for c in runs} == {100, 150, 500}
    assert {c.epochs for c in runs if isinstance(c.method, GradualMagnitude)} == {100, 150}
    assert {c.method.density for c in runs if isinstance(c.method, RigL)} == densities
    drops = {"rigl-resnet50": (30, 70, 90), "rigl-mobilenet": (40, 75, 95)}[name]
    warm = {"rigl-resnet50": 5, "rigl-mobilenet": 8}[name]
    for config in runs:
        assert (config.batch_size, config.label_smoothing, config.data) == (4096, 0.1, "folder/imagenet")
        assert config.micro_batch == 256  # one GPU does not hold more
        assert config.optimizer == SGD(lr=1.6, momentum=0.9, nesterov=True, weight_decay=1e-4)
        assert isinstance(config.schedule, WarmUp)
        assert config.schedule.epochs == warm
        if isinstance(config.schedule.then, Drops):
            assert config.schedule.then == Drops(epochs=tuple(d * config.epochs // 100 for d in drops), by=0.1)
        if isinstance(config.method, Moves):
            assert (config.method.every, config.method.until) == (100, 25_000 / 32_000)


def test_arithmetic_of_resnet50_is_the_papers() -> None:
    found = {}
    for config in full("rigl-resnet50", RigL):
        assert isinstance(config.method, RigL)
        budget = "erk" if config.method.budget.__class__.__name__ == "function" else "uniform"
        if config.epochs == 100:
            found[budget, config.method.density] = arithmetic(config) / 100
    assert found["erk", 0.2] == pytest.approx(0.416, abs=2e-3)
    assert found["erk", 0.1] == pytest.approx(0.244, abs=2e-3)
    assert found["uniform", 0.2] == pytest.approx(0.226, abs=5e-3)  # here other layers make up for the dense first one


def test_arithmetic_of_mobilenet_is_the_papers() -> None:
    """What carries a mask is plainly uniform: the layers that stay dense are none of it, and no other one is dense."""
    shares = {
        config.method.density: arithmetic(config) / 100
        for config in full("rigl-mobilenet", Static)
        if isinstance(config.method, Static) and config.method.budget is uniform
    }
    assert shares[0.25] == pytest.approx(0.29, abs=4e-3)
    assert shares[0.1] == pytest.approx(0.145, abs=1e-3)


def test_widths_of_small_dense_and_big_sparse_nets_are_the_papers() -> None:
    small = {name: {c.width for c in full(name, Dense)} - {1.0} for name in ("rigl-resnet50", "rigl-mobilenet")}
    assert small["rigl-resnet50"] == {0.465, 0.34, 0.26, 0.231}
    assert small["rigl-mobilenet"] == {0.47, 0.414, 0.285, 0.204, 0.176}  # 0.414 and 0.176 are not printed
    for name, widths in (("rigl-resnet50", RESNET50_SMALL), ("rigl-mobilenet", MOBILENET_SMALL)):
        assert {c.epochs for c in full(name, Dense) if c.width < 1} == {100, 500}
        (model,) = {c.model for c in configs(name, "full")}
        for density, width in widths.items():  # as many weights more as the bits of a mask take, 1 in 32
            assert _weights(model, width) / _weights(model, 1.0) - density == pytest.approx(1 / 32, abs=6e-3)
    wide = {
        (c.method.density, c.width, c.epochs)
        for name in ("rigl-resnet50", "rigl-mobilenet")
        for c in full(name, RigL)
        if isinstance(c.method, RigL) and c.width > 1
    }
    assert wide == {(0.2, 2.1, 500), (0.1, 2.8, 500), (0.25, 1.98, 500), (0.1, 3.0, 500), (0.05, 3.98, 500)}


def _weights(model: str, width: float) -> int:
    with torch.device("meta"):
        net = models.build(model, input_shape=(3, 224, 224), classes=1000, seed=0, width=width)
    return sum(parameter.numel() for parameter in net.parameters() if parameter.dim() > 1)


def test_lenet_is_the_papers() -> None:
    (config, *_) = full("rigl-lenet", RigL)
    assert isinstance(config.method, RigL)
    assert (config.epochs, config.batch_size) == (200, 100)
    assert config.optimizer == SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert config.schedule == Drops(epochs=(75, 95), by=1 / 3)
    assert config.method.until * 200 * 600 == pytest.approx(50_000)
    shapes = {"fc1.weight": torch.Size((300, 784)), "fc2.weight": torch.Size((100, 300))}
    assert config.method.budget(shapes, config.method.density) == {"fc1.weight": 2352, "fc2.weight": 3300}
    assert config.method.density == pytest.approx((2352 + 3300) / (235_200 + 30_000), abs=5e-5)
    assert config.inputs == Images(channels=1)
    (plus,) = [c for c in full("rigl-lenet", RigL) if c.model == "lenet_100_69"]
    assert isinstance(plus.method, RigL)
    shapes = {"fc1.weight": torch.Size((100, 784)), "fc2.weight": torch.Size((69, 100))}
    counts = plus.method.budget(shapes, plus.method.density)
    assert counts == {"fc1.weight": round(0.04 * 408 * 100), "fc2.weight": round(0.14 * 100 * 69)}
    assert plus.method.density == pytest.approx(sum(counts.values()) / (78_400 + 6_900), abs=5e-5)
    # the paper counts 6.2 kFLOPs for a net of which 51 neurons of the second layer are left
    assert 2 * (sum(counts.values()) + 51 * 10) == pytest.approx(6200, rel=5e-3)


def test_the_language_model_is_the_papers() -> None:
    (config, *_) = full("rigl-gru", RigL)
    assert isinstance(config.method, RigL)
    assert (config.batch_size, config.clip, config.inputs) == (32, 10.0, Text(unit="bytes", length=512))
    assert config.optimizer == Adam(lr=7e-4, weight_decay=5e-4)
    settings = (config.method.density, config.method.every, config.method.until, config.method.drop_fraction)
    assert settings == (0.25, 100, 1.0, 0.1)
    (pruning, *_) = full("rigl-gru", GradualMagnitude)
    assert isinstance(pruning.method, GradualMagnitude)
    assert (pruning.method.begin, pruning.method.until, pruning.method.every) == (0.25, 0.75, 1000)
    assert {c.method.density for c in full("rigl-gru", Static)} == {0.25}  # type: ignore[union-attr]


def test_nets_are_trained_as_by_search_and_train() -> None:
    for model, name in (("conv6", "cs-figure-3-left"), ("resnet20", "cs-figure-3-right"), ("wrn_22_2", "rigl-cifar10")):
        config, usual = configs(name, "full")[0], TRAINED[model]
        mine = (config.epochs, config.batch_size, config.optimizer, config.augment)
        assert mine == (usual.epochs, usual.batch_size, usual.optimizer, usual.augment)
        assert usual.schedule in {c.schedule for c in configs(name, "full")}


# ---- they run


def once_each(found: Iterable[RunConfig]) -> list[RunConfig]:
    """One run of each model and method, and of dense nets one that is trained longer; schedules are not told apart."""
    kinds = {}
    for config in found:
        longer = isinstance(config.method, Dense) and config.method.times > 1
        kinds.setdefault((config.model, config.method_name, longer, config.width < 0.05), config)
    return list(kinds.values())


_OFTEN = ("cs-figure-2", "cs-figure-3-left", "rigl-cifar10", "rigl-gru", "cs-imagenet")  # between them, every kind


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, id=r.name, marks=[] if r.name in _OFTEN else pytest.mark.slow) for r in TRAINING],
)
def test_it_runs_at_smoke_scale(recipe: Recipe, tmp_path: Path) -> None:
    for config in once_each(recipe.runs("smoke")):
        path = execute(config, tmp_path)
        records = [record for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "result"]
        assert records
        for record in records:
            assert record["bytes"] > 0
            assert record["multiply_adds"] is not None
            assert record["arithmetic"] is not None
            assert record["test_loss"] is None or math.isfinite(record["test_loss"])
    write_report([tmp_path])


@pytest.mark.slow
@EACH
def test_every_run_of_the_smoke_scale(recipe: Recipe, tmp_path: Path) -> None:
    assert run(["reproduce", recipe.name, "--scale", "smoke", "--out", str(tmp_path), "--jobs", "1", "-q"]) == 0


def test_image_folders_and_texts_of_any_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 16), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "flowers" / part / label
            folder.mkdir(parents=True)
            for place in range(number):
                pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{place}.png")
    (imagenet, *_) = find("cs-imagenet").runs("smoke", data_dir=tmp_path / "flowers")
    assert (imagenet.data, imagenet.examples) == ("folder/flowers", None)
    path = execute(imagenet, tmp_path / "out", How(data_dir=tmp_path / "flowers"))
    assert read_metrics(path / "metrics.jsonl")[-1]["kind"] == "result"
    (tmp_path / "poems.txt").write_bytes(bytes(range(256)) * 20)
    (gru, *_) = find("rigl-gru").runs("smoke", data_dir=tmp_path / "poems.txt")
    assert gru.data == "text/poems.txt"
    path = execute(gru, tmp_path / "out", How(data_dir=tmp_path / "poems.txt"))
    assert read_metrics(path / "metrics.jsonl")[-1]["token"] == "byte"
    (tmp_path / "imagenet").mkdir()  # what has the usual name keeps it
    assert {config.data for config in find("rigl-resnet50").runs("full", data_dir=tmp_path)} == {"folder/imagenet"}


def test_the_made_up_data() -> None:
    tiny = load("tombola.lab.recipes.tiny:images")
    assert (tiny.input_shape, tiny.classes, tiny.steps(16)) == ((3, 32, 32), 10, 2)
    text = load("tombola.lab.recipes.tiny:text")
    assert (text.input_shape, text.classes, text.steps(16)) == ((16,), 256, 2)


# ---- the command


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    for recipe in TRAINING:
        (line,) = [line for line in lines if line.startswith(f"{recipe.name} ")]
        assert line.split()[-3:] == [f"{recipe.epochs(scale):,}" for scale in SCALES]
    assert "nothing is trained" in said.out


def asked(*arguments: str) -> list[RunConfig]:
    """The runs that `tombola reproduce` would make."""
    with cli.commands["reproduce"].make_context("reproduce", list(arguments)) as context:
        options = context.params
        return _checked(find(options["name"]), options["scale"], options)


def test_how_it_computes() -> None:
    smoke = ("--scale", "smoke")

    def found(name: str, *more: str) -> set[tuple[str, bool, bool]]:
        return {(run.precision, run.channels_last, run.compile) for run in asked(name, *smoke, *more)}

    assert {run.micro_batch for run in asked("rigl-resnet50", *smoke)} == {None}
    assert {run.micro_batch for run in asked("rigl-resnet50", *smoke, "--micro-batch", "4")} == {4}
    for name in ("cs-figure-2", "rigl-gru", "transfer"):  # on the CPU they keep the names that they have
        assert asked(name, *smoke) == find(name).runs("smoke")
    assert found("cs-figure-2", "--device", "cuda") == {("fp32", True, False)}
    assert found("cs-figure-2", "--device", "cuda", "--no-channels-last") == {("fp32", False, False)}
    assert found("rigl-gru", "--device", "cuda") == {("fp32", False, False)}
    assert found("cs-figure-2", "--precision", "bf16", "--channels-last", "--compile") == {("bf16", True, True)}

    images = load("tombola.lab.recipes.tiny:images")
    dense = replace(CONV6, batch_size=16, epochs=1250)  # of two steps
    for times, long in ((1, False), (2, True)):
        made = Computing(device="cuda").of(replace(dense, method=Dense(times=times)), images)
        assert (made.channels_last, made.compile) == (True, long)
    assert not Computing(device="cuda").of(replace(dense, epochs=9999, model="lenet_300_100"), images).compile


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "--help"]) == 0
    said = capsys.readouterr().out
    assert "What to reproduce:" in said
    assert "--scale [smoke|cpu|full]" in said
    assert "[default: runs/NAME-SCALE]" in " ".join(said.split()).replace("- SCALE", "-SCALE")
    assert "[NAME]\n" in said.splitlines(keepends=True)[0]
    assert said.count("[NAME]") == 1


def test_figure_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "cs-figure-1", "--out", str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new" / "relaxation.svg") in capsys.readouterr().out
    scores, masks = curves()
    assert list(masks) == pytest.approx([200 ** (quarter / 4) for quarter in range(5)])
    for beta, mask in masks.items():
        assert torch.equal(mask, torch.sigmoid(beta * scores))
    with (tmp_path / "new" / "relaxation.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[0] == "score"
    assert head[-1] == "mask_at_beta_200"
    assert len(rows) == len(scores)
    assert [float(row[-1]) for row in rows] == pytest.approx(masks[max(masks)].tolist())
    assert ET.fromstring((tmp_path / "new" / "relaxation.svg").read_text()).tag.endswith("svg")
    with Image.open(tmp_path / "new" / "relaxation.png") as picture:
        assert picture.size[0] > 500
    (tmp_path / "file").write_text("")
    assert run(["reproduce", "cs-figure-1", "--out", str(tmp_path / "file" / "below")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out" in line


@pytest.mark.usefixtures("without_workers")
def test_the_report_says_that_it_is_reduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    command = ["reproduce", "rigl-lenet", "--scale", "smoke", "--seeds", "3", "--out", str(out), "--jobs", "1"]
    assert run(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Evci et al. 2020, appendix B, MNIST: reduced (smoke scale), not as published." in said
    assert "lenet_300_100 on digits, seed 3, reduced (smoke scale)" in said
    assert "RigL+ is given its 100 and 69 neurons, and all pixels." in said
    assert "lenet_100_69 on digits, seed 3, reduced (smoke scale)" in said
    page = (out / "report.html").read_text()
    assert "reduced (smoke scale)" in page
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["scale"] for row in rows} == {"reduced (smoke scale)"}
    assert all(row["bytes"] and row["multiply_adds"] and row["wall_seconds"] for row in rows)
    (noted,) = experiments(out)
    assert (noted.name, noted.scale, len(noted.runs)) == ("rigl-lenet", "smoke", len(rows))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rigl"], "there is no experiment 'rigl'; there is cs-figure-1, cs-figure-2"),
        (["rigl-lenet", "--scale", "tiny"], "--scale: 'tiny' is not one of 'smoke', 'cpu', 'full'"),
        (["cs-figure-2"], "data 'cifar10': say where cifar10 is with --data-dir"),
        (["rigl-resnet50", "--scale", "full"], "data 'folder/imagenet': say where imagenet is with --data-dir"),
        (["cs-figure-2", "--data-dir", "nowhere"], "nowhere: there is no such folder; --data-dir must name"),
        (["rigl-resnet50", "--data-dir", "nowhere"], "nowhere: there is no such file or folder; --data-dir must name"),
        (["rigl-gru", "--data-dir", "nowhere"], "nowhere: there is no such file or folder; --data-dir must name"),
        (["rigl-lenet", "--scale", "smoke", "--device", "abacus"], "--device abacus: PyTorch cannot use it here"),
        (["rigl-lenet", "--seeds", "x"], "--seeds: must be a whole number"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []
