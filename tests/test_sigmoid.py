"""The two sweeps under a sigmoid mask, beside PyTorch's derivatives in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tombola import sigmoid
from tombola.sigmoid import Sigmoid

SIZES = st.integers(0, 70) | st.integers(10_000, 40_000)
CURVES = st.builds(Sigmoid, st.floats(1, 200), st.floats(1, 3), st.floats(0, 2))


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    grad, weight, score = torch.randn(3, count, generator=draw)
    return grad, weight, score / 10


@pytest.fixture(autouse=True)
def _several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def layers_of(tensor: Tensor, cuts: list[int]) -> list[Tensor]:
    """Parts of it, in memory of their own."""
    return [part.clone() for part in torch.tensor_split(tensor, sorted(cuts))]


CUTS = st.lists(st.integers(0, 40_000), max_size=3)  # of which some may leave layers without a weight


@given(SIZES, CUTS, CURVES, st.integers(0, 2**20))
def test_gradients(count: int, cuts: list[int], curve: Sigmoid, seed: int) -> None:
    grad, weight, score = drawn(count, seed)
    w, s = weight.double().requires_grad_(), score.double().requires_grad_()
    mask = curve.scale * torch.sigmoid(curve.beta * s)
    by_w, by_s = torch.autograd.grad((grad * w * mask).sum() + curve.price * mask.sum(), (w, s))
    parts = [layers_of(tensor, cuts) for tensor in (grad, weight, score, torch.empty_like(score))]
    sigmoid.pull_back(list(zip(*parts, strict=True)), curve)
    grads, weights, scores, outs = map(torch.cat, parts)
    size = curve.beta * curve.scale * (4 + curve.price)  # of what is multiplied by the slope
    torch.testing.assert_close(grads.double(), by_w, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(outs.double(), by_s, rtol=1e-4, atol=1e-6 * size)
    assert torch.equal(weights, weight)
    assert torch.equal(scores, score)


@given(SIZES, CUTS, CURVES, st.integers(0, 2**20))
def test_effective_weights(count: int, cuts: list[int], curve: Sigmoid, seed: int) -> None:
    out, weight, score = drawn(count, seed)
    parts = [layers_of(tensor, cuts) for tensor in (weight, score, out)]
    sigmoid.apply(list(zip(*parts, strict=True)), curve)
    assert torch.equal(torch.cat(parts[0]), weight)
    expected = weight.double() * curve.scale * torch.sigmoid(curve.beta * score.double())
    torch.testing.assert_close(torch.cat(parts[2]).double(), expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 15, 16, 69, 20_000, 39_999])
def test_a_gradient_that_is_not_finite_is_told(value: float, place: int) -> None:
    """Also where the mask is 0; other numbers that are not finite are none of its business."""
    layers = []
    for count, seed in ((70, 0), (40_000, 1), (40_000, 2), (0, 3)):
        grad, weight, score = drawn(count, seed)
        layers.append((grad * 1e37, weight, score.fill_(-math.inf), torch.empty(count)))
    layers[2][1][place] = value
    assert sigmoid.pull_back(layers, Sigmoid(1.0)) == [True] * 4
    layers[1][0][place] = value
    assert sigmoid.pull_back(layers, Sigmoid(1.0)) == [True, False, True, True]


def test_every_size_of_a_score() -> None:
    """To two units in the last place; 0 and 1 at infinity; NaN stays."""
    score = torch.cat([torch.linspace(-86, 120, 100_001), torch.tensor([math.inf, -math.inf, math.nan, -0.0])])
    found = torch.empty_like(score)
    sigmoid.apply([(torch.ones_like(score), score, found)], Sigmoid(1.0))
    expected = torch.sigmoid(score.double())
    assert float(((found - expected) / expected)[:-4].abs().max()) < 2 * torch.finfo(torch.float32).eps
    assert found[-4:-2].tolist() == [1.0, 0.0]
    assert math.isnan(found[-2])
    assert found[-1] == 0.5
