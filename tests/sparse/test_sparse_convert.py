"""convert(): the same model in its fastest form, and what stands between sparse layers."""

import copy
import itertools
import pickle
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import tombola
from tombola.lab import models
from tombola.lab.errors import LabError
from tombola.lab.runs.thin import check_thin
from tombola.sparse import Converted, SparseConv2d, SparseLinear, convert, load, save
from tombola.sparse.around import ABLE, make_aware, make_plain
from tombola.sparse.choose import _path
from tombola.sparse.fuse import fused
from tombola.sparse.layout import inside, is_innermost, outside
from tombola.sparse.norms import normalised
from tombola.sparse.swap import make_dense, make_sparse


def random_masks(model: nn.Module, density: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = tombola.maskable(model).items()
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in parameters}


def masked(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def with_lively_norms(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@cache
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "lenet": models.lenet_300_100(image_size=16, in_channels=3),
        "conv6": models.conv6(width=0.125, image_size=16),
        "resnet20": with_lively_norms(models.resnet20(width=0.5)),
        "wide": with_lively_norms(models.wide_resnet(depth=10, width=0.5)),
        "mobilenet": with_lively_norms(models.mobilenet_v1(classes=10, width=0.125)),
        "resnet50": with_lively_norms(models.resnet50(classes=10, width=0.125)),
    }


def net_of(name: str) -> nn.Module:
    torch.manual_seed(1)  # what a test draws does not depend on whether it is the first to ask for a net
    return copy.deepcopy(nets()[name])


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert one.shape == other.shape
    assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_the_outputs_for_inference_are_those_of_the_masked_model(name: str, batch: int) -> None:
    model = net_of(name).eval()
    masks = random_masks(model)
    x = torch.randn(batch, 3, 16, 16)
    with torch.no_grad():
        close(convert(model, masks, example=x, choose="sparse")(x), masked(model, masks)(x))


@pytest.mark.parametrize("name", nets())
def test_training_it_is_training_the_masked_model(name: str) -> None:
    """Loss, gradients and running averages are as close to those in double precision as the dense model's own."""
    model = net_of(name).train()
    masks = random_masks(model)
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    if name == "lenet" or name == "conv6":
        x = x[:, :, :16, :16]
    fast = convert(model, masks, example=x, choose="sparse")
    dense, exact = masked(model, masks), masked(model, masks).double()
    for net, images in ((fast, x), (dense, x), (exact, x.double())):
        loss = F.cross_entropy(net(images), y)
        loss.backward()
    found = fast.to_dense().state_dict()
    for key, tensor in exact.state_dict().items():
        if "running" in key:
            close(found[key].double(), tensor, 1e-4)
    for key, parameter in exact.named_parameters():
        wanted = parameter.grad
        assert wanted is not None
        layer = fast.net.get_submodule(key.rpartition(".")[0])
        if key in masks:
            assert isinstance(layer, (SparseLinear, SparseConv2d))
            wanted = wanted * masks[key]
            gradient = layer.scattered(layer.values.grad, layer.places)
        else:
            gradient = fast.net.get_parameter(key).grad
        theirs = dense.get_parameter(key).grad
        theirs = theirs * masks[key] if key in masks else theirs
        scale = float(wanted.norm()) + 1e-6
        error, usual = (float((one.double() - wanted).norm()) / scale for one in (gradient, theirs))
        assert error <= 1e-4 + 5 * usual, key


def test_the_way_back_gives_the_masked_model_itself() -> None:
    """Classes, names, values and mode; converting for inference folds norms, and they are there again."""
    for mode in (True, False):
        model = net_of("wide").train(mode)
        masks = random_masks(model)
        back = convert(model, masks, example=torch.randn(4, 3, 16, 16), choose="sparse").to_dense()
        wanted = masked(model, masks)
        assert back.training is mode
        assert [type(module) for module in back.modules()] == [type(module) for module in wanted.modules()]
        assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in wanted.state_dict().items())
        assert back.state_dict().keys() == wanted.state_dict().keys()


def test_the_model_that_was_given_stays_as_it_was() -> None:
    model = net_of("resnet20")
    before, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    convert(model, random_masks(model), example=torch.randn(4, 3, 16, 16))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [type(module) for module in model.modules()] == classes


def test_the_choice_is_what_was_measured() -> None:
    """A wide layer with a thousandth of its weights is faster sparse, a tiny full one is not; the table says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)).eval()
    masks = {"0.weight": torch.rand(2048, 2048) < 0.001}
    fast = convert(model, masks, example=torch.randn(64, 2048))
    wide, last = fast.rows
    assert wide.chosen == "sparse"
    assert wide.sparse_ms < wide.dense_ms
    assert wide.bytes_after < wide.bytes_before / 10
    assert wide.density == pytest.approx(0.001, rel=0.1)
    assert last.density == 1
    assert fast.chosen_ms < fast.dense_ms
    lines = fast.table().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("0 ")
    assert "sparse" in lines[1]


def test_if_the_whole_is_not_faster_all_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tombola.sparse.convert"], "_whole_times", lambda *_: [1.0, 2.0, 3.0])
    model = nn.Sequential(nn.Linear(512, 512)).eval()
    fast = convert(model, {"0.weight": torch.rand(512, 512) < 0.001}, example=torch.randn(8, 512))
    assert [row.chosen for row in fast.rows] == ["dense"]
    assert fast.chosen_ms == fast.dense_ms == 1.0
    assert type(fast.net.get_submodule("0")) is nn.Linear


def test_for_inference_the_fastest_may_be_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["tombola.sparse.convert"]
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    mask, x = torch.rand(32, 32) < 0.1, torch.randn(8, 32)
    for times, as_program in (([3.0, 2.0, 1.0], True), ([3.0, 1.0, 2.0], False)):
        monkeypatch.setattr(module, "_whole_times", lambda *_, times=times: times)
        fast = convert(model, {"0.weight": mask}, example=x)
        assert fast.as_program is as_program
        assert fast.chosen_ms == 1.0
        with torch.no_grad():
            close(fast(x), masked(model, {"0.weight": mask})(x))
    monkeypatch.setattr(module, "_whole_times", lambda *_: [3.0, 1.0])  # in training there is no such way
    assert not convert(model.train(), {"0.weight": mask}, example=x).as_program


def test_without_masks_the_zeros_of_the_weights_count() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)).eval()
    mask = torch.rand(30, 40) < 0.2
    with torch.no_grad():
        model[0].weight.mul_(mask)
    fast = convert(model, example=torch.randn(4, 40), choose="sparse")
    layer = fast.net.get_submodule("0")
    assert isinstance(layer, SparseLinear)
    assert torch.equal(layer.mask(), mask)
    assert not isinstance(fast.net.get_submodule("2"), SparseLinear)


def test_low_precision_is_only_taken_where_it_is_allowed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval()
    masks = {"0.weight": torch.rand(1024, 1024) < 0.9}
    x = torch.randn(64, 1024)
    assert all(row.bf16_ms is None for row in convert(model, masks, example=x).rows)
    fast = convert(model, masks, example=x, bf16=True)
    assert all(row.bf16_ms is not None for row in fast.rows)
    with torch.no_grad():
        close(fast(x), masked(model, masks)(x), 0.03)
    assert fast(x).dtype is torch.float32
    assert type(fast.to_dense()[0]) is nn.Linear


def test_tied_and_unknown_layers_stay_dense_but_masked() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight
            self.up = nn.ConvTranspose2d(3, 3, 2)
            self.reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.reflecting(self.up(self.two(self.one(x))))

    model = Net().eval()
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in tombola.maskable(model).items()}
    x = torch.randn(2, 3, 6, 6)
    fast = convert(model, masks, example=x, choose="sparse")
    assert fast.rows == ()
    with torch.no_grad():
        close(fast(x), masked(model, masks)(x))


def test_code_that_cannot_be_traced_runs_unfused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) > 1e9:
                raise AssertionError
            return self.fc(F.dropout(F.relu(self.norm(self.conv(x))).mean((2, 3)), training=self.training))

    model = with_lively_norms(Net()).eval()
    masks = random_masks(model)
    x = torch.randn(4, 3, 9, 9)
    fast = convert(model, masks, example=x, choose="sparse")
    with torch.no_grad():
        close(fast(x), masked(model, masks)(x))
    assert isinstance(fast.net, Net)


def test_dropout_of_a_traced_model_still_asks_for_the_mode() -> None:
    class Net(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self[0](x), 0.5, training=self.training)

    model = Net(nn.Linear(50, 50)).train()
    fast = convert(model, random_masks(model), example=torch.randn(4, 50), choose="sparse")
    x = torch.randn(4, 50)
    assert (fast(x) == 0).any()
    fast.eval()
    assert not (fast(x) == 0).any()


def test_relus_and_norms_are_steps_of_their_own_no_more() -> None:
    model = with_lively_norms(models.resnet20(width=0.5)).eval()
    made = copy.deepcopy(model)
    make_sparse(made, random_masks(model))
    names = {str(node.target) for node in fused(made).graph.nodes}  # type: ignore[union-attr]
    assert not any("norm" in name for name in names)
    layer = made.get_submodule("stage1.0.conv1")
    assert isinstance(layer, SparseConv2d)
    assert layer.relu
    assert not any("add" in name for name in names)
    assert made.get_submodule("stage1.0.conv2").relu  # after the shortcut, which it adds itself


class Shortcut(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.shift = nn.Parameter(torch.randn(3, 1, 1))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "in place between":
            y = self.conv(x)
            z = F.relu(x, inplace=True)
            return y + z
        if self.kind == "both":
            return torch.relu(self.conv(x) + self.other(x))
        if self.kind == "broadcast":
            return torch.relu(self.conv(x) + self.shift)
        if self.kind == "twice":
            y = self.conv(x)
            return y + y
        if self.kind == "alpha":
            return torch.add(self.conv(x), x, alpha=2)
        if self.kind == "used twice":
            y = self.conv(x)
            return (y + x) * y
        return x + self.conv(x)


@pytest.mark.parametrize("batch", [1, 5, 16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("kind", "absorbed"),
    [
        ("usual", True),
        ("both", False),
        ("broadcast", True),
        ("in place between", False),
        ("twice", False),
        ("alpha", False),
        ("used twice", False),
    ],
)
def test_what_is_added_to_a_convolution(kind: str, absorbed: bool, training: bool, batch: int) -> None:
    model = Shortcut(kind).train(training)
    masks = {"conv.weight": torch.rand(3, 3, 3, 3) < 0.4}
    fast = convert(model, masks, example=torch.randn(batch, 3, 5, 5), choose="sparse")
    names = [str(node) for node in fast.net.graph.nodes]  # type: ignore[union-attr,operator]
    assert any(name.startswith("add") for name in names) is not absorbed
    dense = masked(model, masks)
    x = torch.randn(batch, 3, 5, 5)
    with torch.no_grad():
        close(fast(x.clone()), dense(x.clone()))
    if kind != "in place between":
        x.requires_grad_()
        (one,), (other,) = (torch.autograd.grad(net(x).square().sum(), x) for net in (fast, dense))
        close(one, other)


def test_a_model_for_inference_refuses_to_train() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    fast = convert(model, random_masks(model), example=torch.randn(2, 4), choose="sparse")
    with pytest.raises(RuntimeError, match="converted for inference"):
        fast.train()
    assert fast.eval() is fast


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"1.weight": torch.ones(2, 2, dtype=torch.bool)}, "no parameter '1.weight'"),
        ({"0.weight": torch.ones(2, 2, dtype=torch.bool)}, r"must be bool \(4, 4\), not torch.bool \(2, 2\)"),
        ({"0.weight": torch.ones(4, 4)}, r"must be bool \(4, 4\), not torch.float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(nn.Sequential(nn.Linear(4, 4)), masks, example=torch.randn(2, 4))


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="choose is"):
        convert(nn.Linear(4, 4), example=torch.randn(2, 4), choose="best")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="is on meta; sparse layers compute on the CPU alone, so stay dense there"):
        convert(nn.Linear(4, 4, device="meta"), example=torch.randn(2, 4))


# ---- the path through the layers


def cost(costs: list[tuple[float, float]], turns: list[float], path: list[bool]) -> float:
    before, total = False, 0.0
    for (usual, innermost), turn, now in zip(costs, turns, path, strict=True):
        total += (innermost if now else usual) + (turn if now != before else 0)
        before = now
    return total


def test_the_path_is_the_cheapest_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        length = int(torch.randint(1, 8, (1,), generator=generator))
        costs = [tuple(pair) for pair in torch.rand(length, 2, generator=generator).tolist()]
        turns = (torch.rand(length, generator=generator) * 0.7).tolist()
        every = [[bool(number >> place & 1) for place in range(length)] for number in range(2**length)]
        best = min(cost(costs, turns, path) for path in every)
        assert cost(costs, turns, _path(costs, turns)) == pytest.approx(best)


# ---- norms and pools in the other layout


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 1, 1, 2), (17, 6, 6, 33)])
def test_normalising_is_batch_norm_in_double_precision(shape: tuple[int, ...], relu: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) * 3 + 100
    weight, bias = torch.randn(shape[0]), torch.randn(shape[0])
    above = torch.randn(shape)
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y, mean, variance = normalised(outside(x), weight, bias, 1e-5, relu=relu)
    y = y.movedim(0, -1)
    found = torch.autograd.grad(y, tensors, above)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = F.batch_norm(doubles[0].flatten(1).T, None, None, *doubles[1:], training=True).T.reshape(shape)
    exact = exact.relu() if relu else exact
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean.double(), doubles[0].flatten(1).mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), doubles[0].flatten(1).var(1, correction=0), rtol=1e-4, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(exact, doubles, above.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=2e-3)


def test_gradients_of_what_is_used_twice_are_added_up_in_place() -> None:
    """PyTorch does so if nobody else knows their memory: no view of them, no other tensor."""
    conv, norm = SparseConv2d(3, 3, 3, padding=1, density=0.5), nn.BatchNorm2d(3)
    make_aware(norm)
    x, one, other = (outside(torch.ones(3, 8, 8, 4).cumsum(1)).requires_grad_() for _ in range(3))
    loss = (norm(x) * conv(x, x)).sum()
    with torch.profiler.profile() as seen:
        loss.backward()
    (norm(one) * conv(other, other)).sum().backward()
    torch.testing.assert_close(x.grad, one.grad + other.grad)
    calls = {event.key: event.count for event in seen.key_averages()}
    assert "aten::add" not in calls
    assert calls["aten::add_"] >= 2


def test_normalising_keeps_nan() -> None:
    x = torch.randn(2, 3, 3, 4)
    x[0, 0, 0, 0] = torch.nan
    y, *_ = normalised(outside(x), torch.ones(2), torch.zeros(2), 1e-5, relu=True)
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveMaxPool2d((1, 2)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("training", [True, False])
def test_modules_between_keep_the_layout_and_the_outcome(module: nn.Module, training: bool) -> None:
    torch.manual_seed(0)
    module = copy.deepcopy(module).train(training)
    aware = copy.deepcopy(module)
    make_aware(aware)
    x = torch.randn(5, 6, 8, 8)
    outcomes = []
    for layer, turned in ((module, x), (aware, outside(inside(x).clone()))):
        turned.requires_grad_()
        for _ in range(2):
            y = layer(turned)
        (gradient,) = torch.autograd.grad(y.square().sum(), turned)
        outcomes.append((y, gradient, [b.clone() for b in layer.buffers()]))
    (y, gradient, buffers), (y_aware, gradient_aware, buffers_aware) = outcomes
    assert is_innermost(y_aware) or y_aware.is_contiguous() is y.is_contiguous() is (y.shape[2:] == (1, 1))
    torch.testing.assert_close(y_aware, y, check_stride=False)
    torch.testing.assert_close(gradient_aware, gradient, rtol=1e-4, atol=1e-5, check_stride=False)
    torch.testing.assert_close(buffers_aware, buffers)
    make_plain(aware)
    assert type(aware) is type(module)


def test_a_norm_that_would_divide_by_nothing_says_so() -> None:
    norm = nn.BatchNorm2d(3)
    make_aware(norm)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 3, 1, 1))


def test_making_sparse_and_dense_again_in_place() -> None:
    model = models.conv6(width=0.125, image_size=16)
    masks = random_masks(model)
    wanted = masked(model, masks)
    make_sparse(model, masks)
    assert isinstance(model.get_submodule("conv1"), SparseConv2d)
    assert isinstance(model.get_submodule("fc1"), SparseLinear)
    make_dense(model)
    assert all(torch.equal(tensor, wanted.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_the_result_is_a_module_like_any_other(tmp_path) -> None:
    model = net_of("resnet20").eval()
    x = torch.randn(3, 3, 16, 16)
    fast = convert(model, random_masks(model), example=x, choose="sparse")
    assert isinstance(fast, Converted)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(fast)(x), fast(x))
        assert torch.equal(torch.compile(fast, backend="aot_eager")(x), fast(x))


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("training", [True, False])
def test_copies_of_models_with_sparse_layers(name: str, training: bool) -> None:
    model = net_of(name).train(training)
    masks, x = random_masks(model), torch.randn(4, 3, 16, 16)
    fast = convert(model, masks, example=x, choose="sparse")
    make_sparse(model, masks)
    ways: tuple[Any, ...] = (copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)))
    for way, net in itertools.product(ways, (fast, model)):
        again = way(net)
        classes, wanted = (
            [type(module) for module in it.modules() if not isinstance(module, fx.GraphModule)] for it in (again, net)
        )
        assert classes == wanted
        assert again.training is training
        assert torch.equal(again(x), net(x))
        assert {p.data_ptr() for p in again.parameters()}.isdisjoint(p.data_ptr() for p in net.parameters())
    for way in ways:
        again = way(fast)
        if training:  # an optimiser of the copy's parameters trains what it gives back
            with torch.no_grad():
                for parameter in again.parameters():
                    parameter.zero_()
        zeros = [not bool(parameter.any()) for parameter in again.to_dense().parameters()]
        assert all(zeros) is training


@pytest.mark.parametrize("low_precision", [False, True])
def test_every_class_between_sparse_layers_can_be_pickled(low_precision: bool) -> None:
    plain = [nn.BatchNorm2d(3), nn.Conv1d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 3)]
    plain += [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2)]
    assert len(plain) == len(ABLE)
    for module in plain:
        aware = copy.deepcopy(module)
        make_aware(aware, low_precision=low_precision)
        again = pickle.loads(pickle.dumps(aware))
        assert type(again) is type(aware)
        make_plain(again)
        assert type(again) is type(module)


# ---- weights that change after converting


def inference_of(model: nn.Module, x: torch.Tensor) -> tuple[Converted, dict[str, torch.Tensor]]:
    """A converted model, and a state of it with other values, of another number of connections."""
    fast = convert(model.eval(), random_masks(model), example=x, choose="sparse")
    other = convert(model, random_masks(model, 0.5), example=x, choose="sparse").state_dict()
    return fast, {name: 2 * v if name.endswith("values") else v for name, v in other.items()}


def test_loaded_weights_are_those_of_the_dense_model_and_of_the_file(tmp_path) -> None:
    x, model = torch.randn(4, 3, 16, 16), net_of("lenet")
    fast, state = inference_of(model, x)
    fast.load_state_dict(state)
    with torch.no_grad():
        fast.net.get_submodule("fc2").values.mul_(3)  # nobody is told of this
        wanted = fast(x)
        save(fast, tmp_path / "net.safetensors")
        for net in (fast.to_dense(), load(tmp_path / "net.safetensors", model), copy.deepcopy(fast).to_dense()):
            close(net(x), wanted)


@pytest.mark.parametrize("change", ["load", "in place"])
def test_there_is_no_way_back_from_changed_weights_that_norms_are_part_of(change: str, tmp_path) -> None:
    fast, state = inference_of(net_of("resnet20"), torch.randn(4, 3, 16, 16))
    fast.to_dense()
    if change == "load":
        fast.load_state_dict(state)
    else:
        with torch.no_grad():
            fast.net.get_submodule("stage1.0.conv1").values[3] += 1e-3
    for way in (fast.to_dense, copy.deepcopy(fast).to_dense, lambda: save(fast, tmp_path / "net.safetensors")):
        with pytest.raises(RuntimeError, match=r"changed or loaded after convert.*convert it again"):
            way()
    assert not list(tmp_path.iterdir())


# ---- padding="same"


def same_padding() -> nn.Sequential:
    odd, dilated = nn.Conv2d(3, 6, (3, 5), padding="same"), nn.Conv2d(6, 4, 4, padding="same", dilation=2)
    even, rows = nn.Conv2d(4, 4, (2, 3), padding="same"), nn.Conv1d(32, 5, 7, padding="same")
    return nn.Sequential(odd, nn.ReLU(), dilated, even, nn.Flatten(1, 2), rows)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("as_program", [False, True])
def test_layers_that_pad_to_the_same_size(training: bool, as_program: bool, tmp_path) -> None:
    """All but the one that would have to pad one side more."""
    model, x = same_padding().train(training), torch.randn(5, 3, 8, 9)
    masks = random_masks(model)
    fast = convert(model, masks, example=x, choose="sparse")
    fast.as_program = as_program and fast.inference
    assert {row.layer: row.chosen for row in fast.rows} == dict.fromkeys(["0", "2", "5"], "sparse")
    save(fast, tmp_path / "net.safetensors")
    for net in (fast, fast.to_dense(), load(tmp_path / "net.safetensors", model)):
        with torch.no_grad():
            close(net(x), masked(model, masks)(x))


def test_a_run_trains_them_sparse() -> None:
    model = same_padding()
    check_thin(model, ["0.weight", "2.weight", "5.weight"], "net")
    with pytest.raises(LabError, match=r"'3\.weight' of model 'net' cannot be sparse, .*on both sides alike"):
        check_thin(model, ["0.weight", "3.weight"], "net")
