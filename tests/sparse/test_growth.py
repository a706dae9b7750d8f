"""Streaming growth finds what looking at the whole gradient finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tombola.masks import largest
from tombola.sparse import growth
from tombola.sparse.geometry import Geometry
from tombola.sparse.growth import ROOM, GradientScores, RandomScores, best
from tombola.sparse.rewiring import in_dense_order, in_layer_order, ordered


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int, whole: bool) -> Tensor:
    """Whole ones are added up without rounding, in any order, and often equal."""
    draw = generator(seed)
    return torch.randint(-2, 3, shape, generator=draw).float() if whole else torch.randn(shape, generator=draw)


def reference(scores: Tensor, number: int, taken: Tensor, draw: torch.Generator) -> Tensor:
    """All at once, as for a mask."""
    flat = scores.flatten().clone()
    flat[taken] = -1.0
    return largest(flat, number, generator=draw).nonzero().squeeze(1)


def random_taken(size: int, share: float, seed: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed))[: int(share * size)].sort().values


@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 40),
    batches=st.lists(st.integers(1, 6), max_size=3),
    taken=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    wanted=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    entries=st.sampled_from([1, 50, 333, 10_000]),
    seed=st.integers(0, 10_000),
)
def test_exactly_what_is_largest_in_the_whole_gradient(
    outputs: int, inputs: int, batches: list[int], taken: float, wanted: float, entries: int, seed: int
) -> None:
    pieces = [
        (numbers(inputs, 1, 1, n, seed=seed + n, whole=True), numbers(outputs, 1, 1, n, seed=seed - n, whole=True))
        for n in batches
    ]
    gradient = torch.zeros(outputs, inputs)
    for x, towards in pieces:
        gradient += towards.view(outputs, -1) @ x.view(inputs, -1).T
    there = random_taken(outputs * inputs, taken, seed)
    number = int(wanted * (outputs * inputs - len(there)))
    mine, theirs = generator(seed), generator(seed)
    found = best(
        GradientScores(Geometry(inputs, outputs), pieces), number, taken=there, generator=mine, entries=entries
    )
    assert found.tolist() == reference(gradient.abs(), number, there, theirs).tolist()
    assert torch.equal(mine.get_state(), theirs.get_state())  # the same draws, whatever comes next


@pytest.mark.parametrize("entries", [100, 4096, 2**21])
@pytest.mark.parametrize("number", [1, 50, 3000])
def test_heavy_tailed_rows(number: int, entries: int) -> None:
    outputs, inputs, batch = 150, 120, 9
    x, towards = numbers(inputs, 1, 1, batch, seed=1, whole=False), numbers(outputs, 1, 1, batch, seed=2, whole=False)
    towards *= (3 * torch.randn(outputs, 1, 1, 1, generator=generator(3))).exp()
    gradient = (towards.view(outputs, -1).double() @ x.view(inputs, -1).double().T).abs()
    there = random_taken(outputs * inputs, 0.1, 4)
    found = best(
        GradientScores(Geometry(inputs, outputs), [(x, towards)]),
        number,
        taken=there,
        generator=generator(),
        entries=entries,
    )
    wanted = reference(gradient, number, there, generator())
    assert len(found.unique()) == number
    torch.testing.assert_close(
        gradient.flatten()[found].sort().values, gradient.flatten()[wanted].sort().values, rtol=1e-5, atol=0
    )


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 5), "stride": (2, 3), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": 2, "groups": 2},
    {"kernel_size": 2, "padding": 2, "stride": 2, "dilation": 3, "groups": 4},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 1, "stride": 2},
]


@pytest.mark.parametrize("entries", [1, 100, 10_000])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(options: dict[str, int], entries: int) -> None:
    layer = nn.Conv2d(8, 12, **options)  # type: ignore[arg-type]
    pieces = []
    for n in (3, 2):
        x = numbers(n, 8, 9, 10, seed=n, whole=True)
        y = layer(x)
        towards = numbers(*y.shape, seed=n + 5, whole=True)
        y.backward(towards)
        pieces.append((x.movedim(0, -1).contiguous(), towards.movedim(0, -1).contiguous()))
    weight = layer.weight
    geometry = Geometry(8, 12, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    there = random_taken(weight.numel(), 0.2, 1)
    assert weight.grad is not None
    for number in (1, weight.numel() // 3):
        found = best(GradientScores(geometry, pieces), number, taken=there, generator=generator(5), entries=entries)
        assert found.tolist() == reference(weight.grad.abs(), number, there, generator(5)).tolist()


@pytest.mark.parametrize("entries", [1, 100, 10_000])
def test_random_growth_is_one_draw_for_the_whole_layer(entries: int) -> None:
    there = random_taken(40 * 30, 0.5, 1)
    mine, theirs = generator(7), generator(7)
    scores = RandomScores(Geometry(30, 40), mine)
    found = best(scores, 200, taken=there, generator=mine, entries=entries)
    assert found.tolist() == reference(torch.rand(40, 30, generator=theirs), 200, there, theirs).tolist()


def test_without_any_gradient_it_draws() -> None:
    there = random_taken(2000, 0.1, 1)
    found = best(GradientScores(Geometry(50, 40), []), 20, taken=there, generator=generator(3), entries=300)
    assert found.tolist() == reference(torch.zeros(40, 50), 20, there, generator(3)).tolist()


@pytest.mark.parametrize("number", [20, 1200])
def test_more_equal_ones_than_can_be_shuffled(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(growth, "SHUFFLED", 100)
    there = random_taken(2000, 0.1, 1)
    gradient = torch.zeros(40)
    gradient[7] = 1.0  # 50 weights less those taken are better than the others
    pieces = [(torch.ones(50, 1, 1, 1), gradient.view(40, 1, 1, 1))]
    draw = generator(3)
    found = best(GradientScores(Geometry(50, 40), pieces), number, taken=there, generator=draw, entries=300)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == number
    assert not set(found.tolist()) & set(there.tolist())
    better = set(range(350, 400)) - set(there.tolist())
    assert len(better & set(found.tolist())) == min(len(better), number)
    again = best(GradientScores(Geometry(50, 40), pieces), number, taken=there, generator=draw, entries=300)
    assert found.tolist() != again.tolist()


@pytest.mark.parametrize("entries", [20_000, None])
def test_memory_follows_the_number_that_grows(entries: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    empty = torch.empty

    def noted(*shape: int, **options: torch.dtype) -> Tensor:
        made.append(empty(*shape, **options))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr(torch, "empty", noted)
    outputs = inputs = 1000
    pieces = [(torch.randn(inputs, 1, 1, 8), torch.randn(outputs, 1, 1, 8))]
    found = best(
        GradientScores(Geometry(inputs, outputs), pieces),
        500,
        taken=random_taken(10**6, 0.01, 1),
        generator=generator(),
        entries=entries,
    )
    assert len(found) == 500
    block = entries or 2**17  # of its own accord it takes small ones for a layer that is not large
    assert sum(tensor.numel() for tensor in made) <= block + 2 * (ROOM + 2 * 500 + 1024)  # two of candidates


def test_an_infinite_gradient_is_an_error() -> None:
    pieces = [(torch.full((5, 1, 1, 1), 1e30), torch.full((4, 1, 1, 1), 1e30))]
    with pytest.raises(FloatingPointError, match="not finite"):
        best(GradientScores(Geometry(5, 4), pieces), 3, taken=torch.empty(0, dtype=torch.int64), generator=generator())


def test_orders_of_a_convolution() -> None:
    geometry, weight = Geometry(6, 8, (3, 2), groups=2), torch.rand(8, 3, 3, 2) < 0.4
    values = torch.randn(weight.shape) * weight
    places = weight.movedim(1, -1).reshape(-1).nonzero().squeeze(1)
    indices, order = in_dense_order(places, geometry)
    assert indices.tolist() == weight.flatten().nonzero().squeeze(1).tolist()
    mine = values.movedim(1, -1).reshape(-1)[places]
    assert torch.equal(ordered(mine, order), values.flatten()[indices])
    back, order = in_layer_order(indices, geometry)
    assert torch.equal(back, places)
    assert torch.equal(ordered(values.flatten()[indices], order), mine)
