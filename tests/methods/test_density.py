"""The density controller: exact counts whatever the scores, a band while training, and what it leaves alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import OPTIMIZERS, differ, train
from table import attached
from torch import Tensor, nn
from zoo import NETS

import tombola
from tombola import ContinuousSparsification, Masks, TicketSearch
from tombola.methods import density as controller
from tombola.methods.density import ceiling, steer
from tombola.methods.protocol import Moment

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)


def at(step: int, steps: int) -> Moment:
    return Moment(step=step, steps=steps, steps_per_epoch=None, weights=1)


def positive(scores: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: (score > 0).int().tolist() for name, score in scores.items()}


def share(scores: dict[str, Tensor]) -> float:
    return Masks({name: score > 0 for name, score in scores.items()}).density


# ---- at the end


def test_the_largest_stay_and_one_offset_moves_them() -> None:
    """0.9, 0.7 and 0.6 stay of six; 0.3 is the largest that goes, so that it is what all of them lose."""
    scores = {"a": torch.tensor([0.9, -0.5, 0.3]), "b": torch.tensor([[0.7, 0.6, -0.1]])}
    steer(scores, 0.5, at(9, 9))
    torch.testing.assert_close(scores["a"], torch.tensor([0.6, -0.8, 0.0]))
    torch.testing.assert_close(scores["b"], torch.tensor([[0.4, 0.3, -0.4]]))


def test_of_equal_scores_the_first_stay() -> None:
    scores = {"a": torch.full((2, 2), 0.25), "b": torch.tensor([0.25, 0.25, 9.0, 0.25])}
    steer(scores, 0.5, at(9, 9))
    assert positive(scores) == {"a": [[1, 1], [1, 0]], "b": [0, 0, 1, 0]}


def test_no_layer_dies_that_need_not() -> None:
    """Of ten weights four stay, and the four largest are all in one layer."""
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0]), "b": torch.tensor([-3.0, -2.0, -4.0]), "c": -torch.ones(2)}
    steer(scores, 0.4, at(9, 9))
    assert positive(scores) == {"a": [1, 1, 0, 0, 0], "b": [0, 1, 0], "c": [1, 0]}


def test_more_layers_than_weights_to_keep() -> None:
    scores = {name: torch.tensor([value, 0.0]) for name, value in {"a": 1.0, "b": 3.0, "c": 2.0}.items()}
    steer(scores, 0.3, at(9, 9))
    assert positive(scores) == {"a": [0, 0], "b": [1, 0], "c": [1, 0]}


def test_one_weight_stays_of_a_share_that_rounds_to_none() -> None:
    scores = {"a": torch.tensor([-1.0, -0.5]), "b": torch.tensor([-2.0])}
    steer(scores, 0.1, at(9, 9))
    assert positive(scores) == {"a": [0, 1], "b": [0]}


def test_layers_without_weights() -> None:
    scores = {"none": torch.zeros(0, 3), "a": torch.tensor([1.0, 2.0])}
    for step in (0, 9):
        steer(scores, 0.5, at(step, 9))
    assert positive(scores) == {"none": [], "a": [0, 1]}
    steer({"none": torch.zeros(0, 3)}, 0.5, at(9, 9))


def slowly(scores: list[float], sizes: list[int], density: float) -> list[bool]:
    """Which stay, by sorting: (layer's best first, if there is room for all), then by score, then by position."""
    keep = max(1, round(density * len(scores)))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    best = {max(range(b, b + n), key=lambda i: (scores[i], -i)) for b, n in zip(starts, sizes, strict=True)}
    first = best if keep >= len(sizes) else set()
    order = sorted(range(len(scores)), key=lambda i: (i not in first, -scores[i], i))
    return [i in order[:keep] for i in range(len(scores))]


layers = st.lists(
    st.lists(st.sampled_from([-30.0, -1.0, -0.0, 0.0, 1e-30, 0.5, 0.5, 2.0, 1e6]), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


@given(layers, st.one_of(st.sampled_from(DENSITIES), st.floats(1e-6, 1.0)), st.booleans())
def test_counts_are_exact_whatever_the_scores(given_: list[list[float]], density: float, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    scores = {str(index): torch.tensor(values, dtype=dtype) for index, values in enumerate(given_)}
    flat = torch.cat(list(scores.values())).tolist()  # as the dtype has them
    expected = slowly(flat, [len(values) for values in given_], density)
    steer(scores, density, at(5, 5))
    after = torch.cat(list(scores.values()))
    assert (after > 0).tolist() == expected
    assert bool(after.isfinite().all())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.floats(0.01, 1.0))
def test_the_order_of_scores_is_kept(values: list[float], density: float) -> None:
    scores = {"a": torch.tensor(values)}
    order = scores["a"].argsort(stable=True, descending=True)
    for step in (0, 3, 7, 10):
        steer(scores, density, at(step, 10))
        assert bool((scores["a"][order].diff() <= 0).all())


# ---- on the way


def test_the_ceiling() -> None:
    """1 − 0.9·(1 − (1 − t/7)³) for t = 0 … 7 of 10 steps; 1 − t/7 is 4/7 at t = 3."""
    assert ceiling(0.1, at(0, 10)) == 1.0
    assert ceiling(0.1, at(3, 10)) == pytest.approx(0.1 + 0.9 * 64 / 343)
    for step in (7, 8, 10):
        assert ceiling(0.1, at(step, 10)) == pytest.approx(0.1)


def test_too_many_positive_scores_are_lowered_to_the_ceiling() -> None:
    scores = {"a": torch.arange(1.0, 81.0), "b": torch.arange(81.0, 101.0).view(4, 5)}
    steer(scores, 0.1, at(3, 10))
    assert share(scores) == round(100 * (0.1 + 0.9 * 64 / 343)) / 100 == 0.27
    assert scores["a"][72] == 0.0  # the 73rd of 100
    assert scores["b"][0, 0] == 81.0 - 73.0


def test_too_few_positive_scores_are_raised_to_the_asked_density() -> None:
    scores = {"a": -torch.arange(1.0, 81.0), "b": torch.arange(-100.0, -80.0).view(4, 5)}
    steer(scores, 0.1, at(3, 10))
    assert share(scores) == 0.1
    assert scores["a"][10] == 0.0
    assert scores["b"].tolist()[3] == [-4.0, -3.0, -2.0, -1.0, 0.0]  # a layer with all weights off would stay so


@pytest.mark.parametrize("low", [0.1, 0.2])
def test_inside_the_band_nothing_moves(low: float) -> None:
    scores = {"a": torch.arange(-79.5, 20.0), "b": torch.tensor([1.0])}
    before = scores["a"].clone()
    steer(scores, low, at(3, 10))
    assert torch.equal(scores["a"], before)


def test_what_an_earlier_round_removed_stays_out() -> None:
    """From 20 of 100 weights that are left, 10 are asked for: the ceiling is above 20 and does not raise the rest."""
    scores = {"a": torch.cat([torch.full((80,), -50.0), torch.linspace(-1e-3, 1e-3, 20)])}
    for step in range(11):
        steer(scores, 0.1, at(step, 10))
        assert bool((scores["a"][:80] < -49).all())
    assert share(scores) == 0.1


def test_a_long_run_is_steered_at_some_of_its_steps() -> None:
    steps = 5 * controller.TIMES
    for step in range(2 * steps // 10, 2 * steps // 10 + 11):
        scores = {"a": torch.arange(1.0, 11.0)}
        steer(scores, 0.1, at(step, steps))
        assert bool(scores["a"][0] < 1) == (step % 5 == 0)


@pytest.mark.parametrize("phase", [0, 1, 2, 3, 7])
def test_the_sample_is_every_nth_score(phase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "SAMPLE", 10)  # 38 scores: every third
    image = torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    layers = [torch.randn(1), image, torch.randn(0), torch.randn(2, 6).t()]
    layers.append(torch.randn(1).double())
    in_memory = [layers[0], image.permute(0, 2, 3, 1).flatten(), layers[2], layers[3].t().flatten(), layers[4]]
    expected = torch.cat(in_memory)[phase % 3 :: 3]
    assert torch.equal(controller._sample(layers, phase), expected)


def test_a_large_net_comes_close_while_training_and_is_exact_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.randn(300_000, generator=generator),
        "b": 2 + torch.randn(100, 9, 9, 9, generator=generator).contiguous(),
        "c": torch.randn(10, generator=generator),
    }
    total = sum(score.numel() for score in scores.values())
    assert total > 5 * controller.SAMPLE
    for step in (800, 850, 900):
        steer(scores, 0.02, at(step, 1000))
        assert share(scores) == pytest.approx(0.02, rel=0.15)  # 5 standard errors
    steer(scores, 0.02, at(1000, 1000))
    assert sum(int((score > 0).sum()) for score in scores.values()) == round(0.02 * total)


# ---- at work


def trained(net: str, method: ContinuousSparsification, steps: int, make: str = "momentum") -> tombola.Attachment:
    model = NETS[net].model()
    optimizer = OPTIMIZERS[make](model.parameters())
    run = attached(method)(model, optimizer, NETS[net], steps)
    train(model, optimizer, NETS[net], range(steps))
    return run


@pytest.mark.parametrize("density", [*DENSITIES, 1.0, 1e-4])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.filterwarnings("ignore:no weight is left in ")  # where there are fewer weights to keep than layers
def test_every_net_reaches_every_density(net: str, density: float) -> None:
    run = trained(net, ContinuousSparsification(density=density), 5)
    sizes = run.masks.sizes()
    keep = max(1, round(density * sum(sizes.values())))
    assert run.masks.kept == keep
    assert bool(run.masks.dead()) == (keep < len(sizes))
    again = attached(ContinuousSparsification(density=density))
    model = NETS[net].model()
    fresh = again(model, OPTIMIZERS["momentum"](model.parameters()), NETS[net], 5)
    fresh.load_state_dict(run.state_dict())
    assert fresh.masks == run.masks
    fresh.detach()
    assert sum(int((parameter != 0).sum()) for parameter in fresh.parameters.values()) == keep


@pytest.mark.parametrize(
    "score_optimizer",
    [None, partial(torch.optim.SGD, lr=0.0), partial(torch.optim.SGD, lr=1e4), partial(torch.optim.Adam, lr=1.0)],
    ids=["sibling", "no learning", "wild", "adam"],
)
@pytest.mark.parametrize("initial_score", [-5.0, 0.0, 3.0])
def test_however_the_scores_learn(score_optimizer: partial[torch.optim.Optimizer] | None, initial_score: float) -> None:
    """Without learning all scores are equal to the end."""
    method = ContinuousSparsification(density=0.3, initial_score=initial_score, score_optimizer=score_optimizer)
    run = trained("mlp", method, 12)
    assert run.masks.kept == round(0.3 * 164)
    assert run.masks.dead() == []
    assert all(bool(score.isfinite().all()) for score in run.scores.values())
    assert all(bool(parameter.isfinite().all()) for parameter in run.parameters.values())


def test_layers_of_one_weight() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = tombola.attach(model, optimizer, ContinuousSparsification(density=0.5), steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 1)).square().sum().backward()
        optimizer.step()
    assert run.masks.kept == round(2.5) == 2


def test_a_mask_that_hardens_early_has_the_density_by_then() -> None:
    method = ContinuousSparsification(density=0.2, harden_at=0.5)
    model, net = NETS["mlp"].model(), NETS["mlp"]
    optimizer = OPTIMIZERS["adam"](model.parameters())
    run = attached(method)(model, optimizer, net, 8)
    train(model, optimizer, net, range(4))
    masks, keep = run.masks, round(0.2 * 164)
    assert masks.kept == keep
    for step in range(4, 8):
        train(model, optimizer, net, [step])
        assert run.masks == masks
        assert sum(int((parameter != 0).sum()) for parameter in run.parameters.values()) == keep


@pytest.mark.filterwarnings("ignore:.*are undecided")
@pytest.mark.parametrize("rewind", [False, True])
@pytest.mark.parametrize("densities", [(0.5, 0.2, 0.05), 0.3])
def test_rounds(densities: float | tuple[float, ...], rewind: bool) -> None:
    """Each ends at its density, inside the ticket of the one before, and starts from the rewind point."""
    net, before, starts = NETS["mlp"], None, []
    # scores that learn fast enough to tell the removed ones from the kept ones at the end of a round
    method = ContinuousSparsification(
        density=densities, rewind=rewind, score_optimizer=partial(torch.optim.SGD, lr=10.0, momentum=0.9)
    )
    model = net.model()
    for round_ in TicketSearch(model, method, rounds=3, rewind_step=2):
        optimizer = OPTIMIZERS["momentum"](model.parameters())
        run = round_.attach(optimizer, steps=30)
        train(model, optimizer, net, range(30))
        wanted = densities if isinstance(densities, float) else densities[round_.index - 1]
        ticket = round_.ticket()
        assert ticket.masks.kept == run.masks.kept == round(wanted * 164)
        starts.append(ticket.start["0.bias"])
        if before is not None and isinstance(densities, tuple):
            inside = sum(int((ticket.masks[name] & before[name]).sum()) for name in before)
            assert inside >= 0.9 * ticket.masks.kept  # a score just below 0 at the end is not out for good
        before = ticket.masks
    assert not differ(starts, [starts[0]] * 3)


@pytest.mark.parametrize("cut", [1, 3, 4, 7, 8])
def test_resuming_between_two_steerings(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "TIMES", 2)  # at steps 4 and 8 of 8
    net, ends = NETS["conv"], []
    for stops in ((8,), (cut, 8)):
        saved: list[dict[str, object]] = []
        done = 0
        for stop in stops:
            model = net.model()
            optimizer = OPTIMIZERS["nesterov"](model.parameters())
            run = attached(ContinuousSparsification(density=0.1))(model, optimizer, net, 8)
            for owner, state in zip((run, model, optimizer), saved, strict=False):
                owner.load_state_dict(state)
            train(model, optimizer, net, range(done, stop))
            saved, done = [run.state_dict(), model.state_dict(), optimizer.state_dict()], stop
        ends.append(saved)
    assert not differ(*ends)
    assert run.masks.kept == round(0.1 * sum(run.masks.sizes().values()))
