"""Counts per layer: hand-computed, exact in their sum, and as the paper and its code have them for three networks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola import erdos_renyi, erk, flops, global_, uniform
from tombola.budgets import Budget, Shapes
from tombola.lab.models import mobilenet_v1, resnet50, wrn_22_2

SMALL: Shapes = {"a": (4, 5), "b": (3, 4, 3, 3), "c": (2, 3)}  # 20, 108 and 6 weights
BUDGETS = {"uniform": uniform, "erdos_renyi": erdos_renyi, "erk": erk, "global_": global_}


def test_uniform_by_hand() -> None:
    # round(0.3·134) = 40: shares 5.97, 32.24, 1.79; rounded down 5 + 32 + 1, the two left over go to a and c
    assert uniform(SMALL, 0.3) == {"a": 6, "b": 32, "c": 2}


def test_uniform_with_a_dense_first_layer() -> None:
    # 40 − 20 = 20 over 114 weights: shares 18.95 and 1.05
    assert uniform(SMALL, 0.3, first_dense=True) == {"a": 20, "b": 19, "c": 1}
    # uncompensated: 0.3 of 108 and of 6
    assert uniform(SMALL, 0.3, first_dense=True, compensate=False) == {"a": 20, "b": 32, "c": 2}


def test_erdos_renyi_by_hand() -> None:
    # round(0.4·134) = 54. Shares: a 9/20, b 7/12, c 5/6. Factor 54/(9 + 63 + 5) = 0.701: nothing is capped.
    # 0.701·(9, 63, 5) = 6.31, 44.18, 3.51
    assert erdos_renyi(SMALL, 0.4) == {"a": 6, "b": 44, "c": 4}


def test_erk_by_hand() -> None:
    # shares: a 9/20, b 13/108, c 5/6. Factor 54/(9 + 13 + 5) = 2: c (5/3) is capped first, then 48/22 = 2.18: a (0.98)
    # is not. 2.1818·(9, 13) = 19.64, 28.36
    assert erk(SMALL, 0.4) == {"a": 20, "b": 28, "c": 6}
    # 67 − 6 = 61; 61/22 = 2.77 caps a as well; b takes the other 41
    assert erk(SMALL, 0.5) == {"a": 20, "b": 41, "c": 6}


def test_layers_of_equal_share_are_capped_together() -> None:
    shapes = {"one": (3, 7), "two": (7, 3), "large": (60, 60)}
    # 728/(10 + 10 + 120) = 5.2; 5.2·10/21 > 1
    assert erk(shapes, 0.2) == {"one": 21, "two": 21, "large": 728 - 42}


def test_own_densities_are_made_up_for() -> None:
    counts = erk(SMALL, 0.3, densities={"b": 0.25})
    assert counts["b"] == 27
    assert sum(counts.values()) == 40


def test_equal_remainders_go_to_the_first_layers() -> None:
    assert uniform({"a": (1, 3), "b": (1, 3), "c": (1, 3), "d": (1, 3)}, 0.5) == {"a": 2, "b": 2, "c": 1, "d": 1}


SHAPES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.lists(st.integers(1, 12), min_size=2, max_size=4), min_size=1
)


@given(shapes=SHAPES, density=st.floats(1e-3, 1.0), name=st.sampled_from(sorted(BUDGETS)))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore:budget. density")
def test_counts_are_exact_and_possible(shapes: Shapes, density: float, name: str) -> None:
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    asked = round(density * sum(sizes.values()))
    if asked < len(sizes) and name != "global_":  # not even one weight for each layer
        with pytest.raises(ValueError, match="already take more"):
            BUDGETS[name](shapes, density)
        return
    counts = BUDGETS[name](shapes, density)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == asked
    assert all(0 <= count <= sizes[layer] for layer, count in counts.items())
    assert name == "global_" or all(counts.values())


@given(density=st.floats(0.01, 1.0), factor=st.integers(2, 5))
def test_shares_are_in_proportion(density: float, factor: int) -> None:
    """Against a bisection for the factor of min(1, factor·share)."""
    shapes = {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (128, 64, 1, 1), "d": (10 * factor, 128)}
    low, high = 0.0, 1e9
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    share = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    total = round(density * sum(sizes.values()))
    for _ in range(200):
        middle = (low + high) / 2
        filled = sum(min(1.0, middle * share[name]) * size for name, size in sizes.items())
        low, high = (middle, high) if filled < total else (low, middle)
    counts = erk(shapes, density)
    assert all(abs(counts[n] - min(1.0, low * share[n]) * size) <= 1 for n, size in sizes.items())


# ---- as the paper's code has it (facts of sparse training: fractions of the dense multiply-adds)


def fraction(model: torch.nn.Module, size: int, budget: Budget, density: float, without: tuple[str, ...] = ()) -> float:
    example = torch.zeros(1, 3, size, size, device="meta")
    counted = flops.count(model, example)
    shapes = {n: p.shape for n, p in model.named_parameters() if n in counted.layers and not n.startswith(without)}
    counts = budget(shapes, density)
    parts = (layer.dense * counts.get(name, layer.weights) / layer.weights for name, layer in counted.layers.items())
    return sum(parts) / counted.dense


PAPER = partial(uniform, first_dense=True, compensate=False)


@pytest.mark.parametrize(
    ("budget", "at_80", "at_90"), [(PAPER, 0.2231, 0.1260), (erdos_renyi, 0.4530, 0.2571), (erk, 0.4138, 0.2418)]
)
def test_resnet50(budget: Budget, at_80: float, at_90: float) -> None:
    with torch.device("meta"):
        model = resnet50()
    assert fraction(model, 224, budget, 0.2) == pytest.approx(at_80, abs=5e-5)
    assert fraction(model, 224, budget, 0.1) == pytest.approx(at_90, abs=5e-5)


def test_layers_of_resnet50_under_erk() -> None:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in resnet50().named_parameters() if p.ndim > 1}
    at_80, at_90 = erk(shapes, 0.2), erk(shapes, 0.1)
    stage1 = [n for n, shape in shapes.items() if n.startswith("layer1") and shape[-1] == 1]
    assert [n for n in shapes if at_80[n] == math.prod(shapes[n])] == [*stage1, "layer2.0.conv1.weight"]
    assert len(stage1) == 7
    assert [n for n in shapes if at_90[n] == math.prod(shapes[n])] == ["layer1.0.conv1.weight"]
    for counts, sparsities in ((at_80, (0.143, 0.852, 0.957)), (at_90, (0.580, 0.927, 0.979))):
        found = [1 - counts[n] / math.prod(shapes[n]) for n in ("conv1.weight", "fc.weight", "layer4.1.conv2.weight")]
        assert found == pytest.approx(sparsities, abs=5e-4)


def test_wrn_22_2_under_erk() -> None:
    with torch.device("meta"):
        model = wrn_22_2()
    assert fraction(model, 32, erk, 0.1, without=("conv1",)) == pytest.approx(0.1742, abs=5e-5)
    shapes = {n: p.shape for n, p in model.named_parameters() if p.ndim > 1 and n != "conv1.weight"}
    counts = erk(shapes, 0.1)
    dense = [n for n in shapes if counts[n] == math.prod(shapes[n])]
    assert dense == ["blocks.0.shortcut.weight", "blocks.3.shortcut.weight", "fc.weight"]


def test_mobilenet_v1() -> None:
    with torch.device("meta"):
        model = mobilenet_v1()
    depthwise = tuple(f"features.depthwise{place}" for place in range(1, 14))
    assert fraction(model, 224, PAPER, 0.1, without=depthwise) == pytest.approx(0.145, abs=5e-4)
    assert fraction(model, 224, PAPER, 0.25, without=depthwise) == pytest.approx(0.29, abs=5e-3)
    assert fraction(model, 224, erk, 0.25, without=depthwise) == pytest.approx(0.52, abs=5e-3)
    assert fraction(model, 224, erk, 0.1, without=depthwise) == pytest.approx(0.29, abs=5e-3)


# ---- what cannot be


def test_an_emptied_layer_keeps_one_weight_per_output() -> None:
    shapes = {"large": (100, 100), "out": (4, 5)}
    assert uniform(shapes, 0.01, allow_empty=True) == {"large": 100, "out": 0}
    with pytest.warns(UserWarning, match=r"would empty 1 layers.*out 4.*densities=.*allow_empty"):
        assert uniform(shapes, 0.01) == {"large": 96, "out": 4}


def test_one_weight_each_where_there_are_not_more() -> None:
    shapes = {"large": (20, 20), "b": (5, 2), "c": (5, 2)}
    with pytest.warns(UserWarning, match="would empty 2 layers"):
        assert uniform(shapes, 5 / 420) == {"large": 3, "b": 1, "c": 1}
    with pytest.raises(ValueError, match=r"2 of 420 weights .* already take more"):
        uniform(shapes, 2 / 420)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: erk({}, 0.1), ["no layers"]),
        (lambda: erk(SMALL, 0.0), ["density", "all layers together", "above 0", "0.0"]),
        (lambda: uniform(SMALL, 1.5), ["at most 1", "1.5"]),
        (lambda: erk(SMALL, 0.5, densities={"c": 2.0}), ["density of c", "2.0"]),
        (lambda: erk(SMALL, 0.5, densities={"d": 0.5}), ["'d'", "a, b, c"]),
        (lambda: uniform(SMALL, 0.1, first_dense=True), ["13 of 134", "a 20 of 20", "already take more"]),
        (lambda: erk(SMALL, 0.9, densities={"b": 0.1}), ["121 of 134", "b 11 of 108", "110 of them over"]),
    ],
)
def test_mistakes(call: partial[object], words: list[str]) -> None:
    with pytest.raises(ValueError, match="budget") as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
