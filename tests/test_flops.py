"""Multiply-adds: by hand, against torch's own counter, and the networks and training costs of the papers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode
from zoo import NETS

from tombola import Masks, flops, maskable
from tombola.lab.models import (
    conv6,
    lenet_300_100,
    mobilenet_v1,
    resnet18,
    resnet18_cifar,
    resnet20,
    resnet50,
    vgg16,
    vgg19,
    wide_resnet,
    wrn_22_2,
)
from tombola.sparse import Converted, SparseLinear, convert
from tombola.sparse.swap import make_sparse

CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9), 6 * 4 * 3 * 5 * 2),
    "2d": (nn.Conv2d(4, 6, (3, 2), dilation=2), (1, 4, 9, 8), 6 * 4 * 6 * 5 * 6),
    "groups": (nn.Conv2d(4, 8, 3, groups=2, padding=1), (1, 4, 5, 5), 8 * 2 * 9 * 25),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), 4 * 9 * 9),
    "3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 2 * 8 * 27),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 4 * 6 * 9 * 25 * 2),
    "transposed groups": (nn.ConvTranspose1d(4, 6, 3, groups=2), (1, 4, 5), 4 * 3 * 3 * 5),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    layer, shape, expected = CONVOLUTIONS[name]
    assert flops.count(layer, torch.zeros(shape)).total == expected


@pytest.mark.parametrize("name", ["1d", "2d", "groups", "depthwise", "3d"])
def test_convolutions_as_torch_counts_them(name: str) -> None:
    layer, shape, _ = CONVOLUTIONS[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(shape))
    assert 2 * flops.count(layer, torch.zeros(shape)).total == counter.get_total_flops()


@pytest.mark.parametrize("build", [conv6, wrn_22_2, lenet_300_100], ids=lambda build: build.__name__)
def test_networks_as_torch_counts_them(build: type[nn.Module]) -> None:
    model = build()
    x = torch.zeros((2, 1, 28, 28) if build is lenet_300_100 else (2, 3, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * flops.count(model, x).total == counter.get_total_flops()


def test_linear_over_many_positions() -> None:
    assert flops.count(nn.Linear(5, 7), torch.zeros(2, 3, 5)).total == 5 * 7 * 6


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers() -> None:
    x = torch.zeros(2, 3, 4)  # 6 elements of sequences
    gru = flops.count(nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=True), x)
    assert gru.layers["weight_ih_l0"].dense == 15 * 4 * 6
    assert gru.layers["weight_ih_l1_reverse"].dense == 15 * 10 * 6
    assert gru.total == 2 * 6 * 15 * (4 + 5 + 10 + 5)
    lstm = flops.count(nn.LSTM(4, 5, proj_size=3), x)
    assert lstm.total == 6 * (20 * 4 + 20 * 3 + 3 * 5)
    assert flops.count(nn.LSTMCell(4, 5), torch.zeros(2, 4)).total == 2 * 20 * (4 + 5)
    packed = pack_sequence([torch.zeros(3, 4), torch.zeros(1, 4)])
    assert flops.count(nn.RNN(4, 5), packed).total == 4 * 5 * (4 + 5)


def test_attention() -> None:
    query, memory = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    counted = flops.count(layer, (query, memory, memory))
    assert counted.layers["in_proj_weight"].dense == 64 * (6 + 10 + 10)
    assert counted.layers["out_proj.weight"].dense == 64 * 6
    mask = torch.zeros(24, 8, dtype=torch.bool)
    mask[0, 0] = mask[8, 0] = True  # a weight of the queries and one of the keys
    assert flops.count(layer, (query, memory, memory), {"in_proj_weight": mask}).total == 6 + 10 + 64 * 6
    apart = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)
    assert flops.count(apart, (query, memory[..., :6], memory[..., :5])).total == 64 * 6 + 48 * 10 + 40 * 10 + 64 * 6


def test_a_transformer_layer_is_counted_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    counted = flops.count(layer, torch.zeros(1, 3, 8))
    assert counted.total == 3 * (4 * 64 + 2 * 8 * 16)
    assert counted.uncounted == ()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETS)
def test_every_masked_layer_is_counted(name: str) -> None:
    model = NETS[name].model()
    counted = flops.count(model, NETS[name].batch(0))
    assert set(NETS[name].masked) <= set(counted.layers)
    masks = Masks({n: torch.ones(model.get_parameter(n).shape, dtype=torch.bool) for n in NETS[name].masked})
    assert flops.count(model, NETS[name].batch(0), masks) == counted


def test_masks_cost_what_they_keep() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    masks = Masks({"0.weight": torch.zeros(2, 1, 3, 3, dtype=torch.bool), "2.weight": torch.eye(3, 8).bool()})
    masks["0.weight"][0, 0, 0, :2] = True
    counted = flops.count(model, torch.zeros(1, 1, 4, 4), masks)
    assert (counted.total, counted.dense) == (2 * 4 + 3, 18 * 4 + 24)
    assert counted.layers["0.weight"] == flops.Layer(weights=18, kept=2, multiply_adds=8, dense=72)
    assert "0.1146" in counted.table().splitlines()[-1]
    # 2 + 3 kept values and 2 + 3 biases of 4 bytes; 18 and 24 bits
    assert flops.size_in_bytes(model, masks) == 4 * 10 + 3 + 3


def test_tied_weights_are_used_twice() -> None:
    model = NETS["tied"].model()
    assert flops.count(model, torch.zeros(1, 6)).total == 2 * 36


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 3))
        self.embed = nn.Embedding(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) @ self.matrix


def test_what_is_not_counted_is_named() -> None:
    counted = flops.count(Own(), torch.zeros(2, dtype=torch.long))
    assert counted.total == 0
    assert counted.uncounted == ("matrix",)


def test_the_model_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flops.count(model, torch.ones(4, 3))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="shapes"):
        flops.count(model, torch.ones(4, 7))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_mistakes() -> None:
    model, x = nn.Linear(3, 2), torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"no parameter 'a'; it has weight, bias"):
        flops.count(model, x, {"a": torch.ones(2, 3).bool()})
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 2\), the parameter \(2, 3\)"):
        flops.count(model, x, {"weight": torch.ones(3, 2).bool()})
    with pytest.raises(ValueError, match="must be positive"):
        flops.break_even(1.0, 0.0)


@pytest.mark.parametrize(
    ("build", "size", "weights", "multiply_adds"),
    [
        (resnet50, 224, 25_502_912, 4_089_184_256),
        (wrn_22_2, 32, 1_076_912, 157_730_048),
        (mobilenet_v1, 224, 4_209_088, 568_740_352),
        (vgg16, 32, 14_715_584, 313_201_664),
        (vgg19, 32, 20_024_000, 398_136_320),
        (resnet18, 224, 11_678_912, 1_814_073_344),
        (resnet18_cifar, 32, 11_164_352, 555_422_720),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sizes_of_the_papers_networks(build: type[nn.Module], size: int, weights: int, multiply_adds: int) -> None:
    with torch.device("meta"):
        model = build()
        counted = flops.count(model, torch.zeros(1, 3, size, size))
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == weights
    assert counted.total == multiply_adds
    assert counted.uncounted == ()


def test_parameters_of_the_residual_nets() -> None:
    """As published: convolutions, norms, the linear layer and its bias."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in net().parameters()) for net in (resnet18, resnet18_cifar, resnet50)]
    assert counts == [11_689_512, 11_173_962, 25_557_032]


def test_widths() -> None:
    """Small dense nets: about the weights of the sparse ones that the paper compares them with."""
    with torch.device("meta"):
        small = sum(p.numel() for p in resnet50(width=0.34).parameters() if p.ndim > 1)
        mobile = sum(p.numel() for p in mobilenet_v1(width=0.353).parameters() if p.ndim > 1)
    assert small / 25_502_912 == pytest.approx(0.13, abs=0.01)
    assert mobile / 4_209_088 == pytest.approx(0.18, abs=0.02)
    with pytest.raises(ValueError, match=r"6n \+ 4 layers.* not 21"):
        wide_resnet(depth=21)


def test_training_costs() -> None:
    # the paper's ResNet-50 at 80 and 90 % with uniform layers: .226 and .129 of dense training
    for sparse, expected in ((0.2231, 0.226), (0.1260, 0.129)):
        assert flops.rigl_cost(sparse, 1.0, every=100) / flops.static_cost(1.0) == pytest.approx(expected, abs=6e-4)
    assert flops.rigl_cost(0.1, 1.0, every=1) == pytest.approx((0.3 + 0.2 + 1.0) / 2)
    assert flops.snfs_cost(0.1, 1.0) == pytest.approx(1.2)
    assert flops.static_cost(0.1) == pytest.approx(0.3)
    assert flops.average_cost(lambda step: 1.0 if step < 2 else 0.25, steps=4) == pytest.approx(3 * 0.625)
    assert flops.break_even(3.0, 5 * 0.3) == pytest.approx(2.0)


# ---- layers that are really sparse

REALLY_SPARSE = {
    "mlp": (lambda: lenet_300_100(image_size=16, in_channels=3), (2, 3, 16, 16)),
    "resnet20": (resnet20, (2, 3, 32, 32)),
    "mobilenet": (lambda: mobilenet_v1(classes=10, width=0.25), (2, 3, 32, 32)),
    "gru": (lambda: nn.Sequential(nn.GRU(5, 6, 2, bidirectional=True)), (4, 3, 5)),
    "1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Linear(5, 7)), (3, 4, 9)),
}


@pytest.mark.parametrize("name", REALLY_SPARSE)
@pytest.mark.parametrize("training", [False, True])
def test_sparse_layers_count_as_dense_ones_under_the_same_masks(name: str, training: bool) -> None:
    build, shape = REALLY_SPARSE[name]
    model, x = build().train(training), torch.zeros(shape)
    draw = torch.Generator().manual_seed(0)
    masks = Masks({n: torch.rand(p.shape, generator=draw) < 0.3 for n, p in maskable(model).items()})
    wanted = flops.count(model, x, masks)
    assert wanted.total < 0.4 * wanted.dense
    fast = convert(model, masks, example=x, choose="sparse")
    make_sparse(model, masks)
    for net in (model, fast):
        found = flops.count(net, x)
        assert found == wanted
        assert list(found.layers) == list(wanted.layers)
        assert flops.count(net, x, masks) == wanted
        assert net.training is training
    with pytest.raises(ValueError, match=r"the mask of '\S+' has shape \(1,\), the parameter \("):
        flops.count(model, x, {next(iter(masks)): torch.ones(1).bool()})


def test_a_sparse_layer_used_twice_and_one_alone() -> None:
    layer = SparseLinear(6, 6, density=0.5)
    assert flops.count(layer, torch.zeros(4, 3, 6)).layers == {"weight": flops.Layer(36, 18, 18 * 12, 36 * 12)}
    assert flops.count(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 6)).total == 36


def test_what_was_chosen_to_stay_dense_counts_as_dense() -> None:
    model, x = lenet_300_100(image_size=8).eval(), torch.zeros(1, 1, 8, 8)
    masks = Masks({"fc1.weight": torch.rand(300, 64) < 0.5, "fc2.weight": torch.rand(100, 300) < 0.5})
    plain = copy.deepcopy(model)
    make_sparse(plain, {"fc1.weight": masks["fc1.weight"]})
    counted = flops.count(Converted(plain, (), dense_ms=None, chosen_ms=None), x)
    wanted = flops.count(model, x, {"fc1.weight": masks["fc1.weight"]})
    assert counted == wanted
