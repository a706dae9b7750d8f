"""The networks of the ticket literature: sizes, shapes, initialisation; and the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from loop import same
from torch import nn

from tombola import flops
from tombola.lab.errors import LabError
from tombola.lab.models import (
    MODELS,
    build,
    conv2,
    conv4,
    conv6,
    conv_digits,
    gru_lm,
    lenet_100_69,
    lenet_300_100,
    resnet20,
    unmasked,
    width_for,
)
from tombola.selection import maskable

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
SMALL = ["lenet_300_100", "conv_digits", "conv2", "conv4", "conv6", "resnet20"]


def weights(model: nn.Module) -> int:
    """Weights of convolutions and linear layers: what the papers count."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lenet_300_100(), 784 * 300 + 300 * 100 + 100 * 10),
        (lenet_300_100(image_size=8), 64 * 300 + 300 * 100 + 100 * 10),
        (lenet_100_69(), 784 * 100 + 100 * 69 + 69 * 10),
        (conv_digits(), 9 * 16 + 9 * 16 * 32 + 4 * 32 * 64 + 64 * 10),
        (conv2(), 27 * 64 + 9 * 64 * 64 + 16 * 16 * 64 * 256 + 256 * 256 + 2560),
        (conv4(), 27 * 64 + 9 * (64 * 64 + 64 * 128 + 128 * 128) + 8 * 8 * 128 * 256 + 256 * 256 + 2560),
        (conv6(), 27 * 64 + 9 * (64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2) + 16 * 256 * 256 + 256 * 256 + 2560),
        (resnet20(), 270_896),  # Frankle & Carbin, appendix I
    ],
)
def test_weights(model: nn.Module, count: int) -> None:
    assert weights(model) == count


def test_conv6_in_millions() -> None:
    assert weights(conv6()) == 2_261_184  # 1.14 M in convolutions, 1.11 M and 2.6 k in linear layers


def test_layers_of_resnet20() -> None:
    model = resnet20()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions].count((3, 3)) == 19  # and one linear layer: 20
    assert [(c.in_channels, c.out_channels) for c in convolutions if c.kernel_size == (1, 1)] == [(16, 32), (32, 64)]
    left_out = unmasked("resnet20")
    masked = maskable(model, lambda name, parameter: name not in left_out)
    assert sum(p.numel() for p in masked.values()) == 267_696
    assert sum(dict(model.named_parameters())[name].numel() for name in left_out) == 2_560 + 640
    assert unmasked("conv6") == unmasked("mine:net") == ()


def by_rows(rows: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Weights and multiply-adds of layers (inputs, outputs, kernel, side of the output map)."""
    return (
        sum(inputs * outputs * kernel**2 for inputs, outputs, kernel, _ in rows),
        sum(inputs * outputs * kernel**2 * side**2 for inputs, outputs, kernel, side in rows),
    )


def basic_blocks(side: int) -> list[tuple[int, int, int, int]]:
    rows, channels = [], 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        at = side >> stage
        rows += [(channels, outputs, 3, at), (outputs, outputs, 3, at)] + [(outputs, outputs, 3, at)] * 2
        rows += [(channels, outputs, 1, at)] if stage else []
        channels = outputs
    return rows


VGG19 = [(64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), *[(256, 256, 8)] * 3]
VGG19 += [(256, 512, 4), *[(512, 512, 4)] * 3, *[(512, 512, 2)] * 4]


def wide_blocks(depth: int, factor: int) -> list[tuple[int, int, int, int]]:
    rows, channels = [(3, 16, 3, 32)], 16
    for outputs, side in ((16 * factor, 32), (32 * factor, 16), (64 * factor, 8)):
        rows += [(channels, outputs, 1, side)] if channels != outputs else []
        rows += [(channels, outputs, 3, side)] + [(outputs, outputs, 3, side)] * ((depth - 4) // 3 - 1)
        channels = outputs
    return [*rows, (channels, 10, 1, 1)]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "rows"),
    [
        ("resnet18", (3, 224, 224), 1000, [(3, 64, 7, 112), *basic_blocks(56), (512, 1000, 1, 1)]),
        ("resnet18_cifar", CIFAR, 10, [(3, 64, 3, 32), *basic_blocks(32), (512, 10, 1, 1)]),
        ("vgg19", CIFAR, 10, [(3, 64, 3, 32), *((i, o, 3, side) for i, o, side in VGG19), (512, 10, 1, 1)]),
        ("wrn_16_4", CIFAR, 10, wide_blocks(16, 4)),
        ("wrn_22_2", CIFAR, 10, wide_blocks(22, 2)),
        ("wrn_28_10", CIFAR, 10, wide_blocks(28, 10)),
        ("wrn_40_2", CIFAR, 10, wide_blocks(40, 2)),
    ],
)
def test_sizes_layer_by_layer(
    name: str, shape: tuple[int, ...], classes: int, rows: list[tuple[int, int, int, int]]
) -> None:
    with torch.device("meta"):
        model = MODELS[name](classes=classes)
        counted = flops.count(model, torch.zeros(1, *shape))
        assert model.eval()(torch.zeros(2, *shape)).shape == (2, classes)
    assert (weights(model), counted.total) == by_rows(rows)
    assert set(unmasked(name)) <= dict(model.named_parameters()).keys()


def test_the_unmasked_of_vgg19() -> None:
    assert unmasked("vgg19") == ("fc.weight",)  # Frankle & Carbin: 5,120 weights
    assert dict(MODELS["vgg19"]().named_parameters())["fc.weight"].numel() == 5_120


def test_resnet20_by_hand() -> None:
    """The same function written down once more, in plain operations."""
    model = resnet20().eval()
    state, x = model.state_dict(), torch.randn(2, *CIFAR)

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        out = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return out * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)

    y = norm("norm0", conv("conv0", x)).relu()
    for stage in (1, 2, 3):
        for block in range(3):
            at, stride = f"stage{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            inner = norm(f"{at}.norm1", conv(f"{at}.conv1", y, stride)).relu()
            inner = norm(f"{at}.norm2", conv(f"{at}.conv2", inner))
            y = (inner + (y if stride == 1 else conv(f"{at}.shortcut", y, stride))).relu()
    out = y.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    assert torch.allclose(model(x), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("shape", "classes"), [(CIFAR, 10), (DIGITS, 3)])
def test_outputs(name: str, shape: tuple[int, ...], classes: int) -> None:
    model = build(name, input_shape=shape, classes=classes, seed=0)
    assert model.training
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, classes)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_initialisation(name: str) -> None:
    model = build(name, input_shape=CIFAR, classes=10, seed=0)
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            outputs, inputs = module.weight.shape[:2]
            patch = module.weight[0, 0].numel()
            deviation = math.sqrt(2 / ((inputs + outputs) * patch))  # Glorot & Bengio
            count = module.weight.numel()
            assert abs(float(module.weight.detach().std()) / deviation - 1) < 6 / math.sqrt(2 * count), path
            assert abs(float(module.weight.detach().mean())) < 6 * deviation / math.sqrt(count), path
            assert module.bias is None or not module.bias.any(), path
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_a_model(name: str) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (build(name, input_shape=DIGITS, classes=10, seed=seed) for seed in (4, 4, 5))
    assert same(one.state_dict(), two.state_dict())
    assert not same(one.state_dict(), other.state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        one.reset_parameters()
    assert not same(one.state_dict(), two.state_dict())  # a control that is initialised anew differs in its weights


def test_too_small_an_image() -> None:
    with pytest.raises(LabError, match="vgg halves images 5 times, so 16×16 is too small"):
        build("vgg19", input_shape=(3, 16, 16), classes=10, seed=0)
    with pytest.raises(LabError, match="too small to be halved 3 times"):
        conv6(image_size=4)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        (
            "vgg",
            CIFAR,
            "model 'vgg': there is lenet_300_100, lenet_100_69, conv_digits, .*; or give your own as module:function",
        ),
        ("resnet20", (6,), r"takes images of shape \(channels, size, size\), but one example .* has shape \(6,\)"),
        ("resnet20", (3, 8, 9), r"\(3, 8, 9\)"),
        ("nowhere_to_be_found:net", CIFAR, "there is no module 'nowhere_to_be_found'"),
        ("own_nets:nothing", CIFAR, "has no function 'nothing'"),
        ("own_nets:wrong", CIFAR, "the function returned int, not a torch.nn.Module"),
        ("own_nets:fails", CIFAR, "failed: ZeroDivisionError"),
        ("own_nets:wants", CIFAR, "needs the argument 'width'; it may only need some of: input_shape, classes, in_ch"),
    ],
)
def test_mistakes(name: str, shape: tuple[int, ...], says: str, own_nets: Path) -> None:
    with pytest.raises(LabError, match=says):
        build(name, input_shape=shape, classes=10, seed=0)


# ---- the character model


def test_the_character_model_is_that_of_the_paper() -> None:
    model = gru_lm()
    counts = {name: parameter.numel() for name, parameter in model.named_parameters() if "bias" not in name}
    assert counts == {
        "embedding.weight": 256 * 128,  # and that of the output
        "gru.weight_ih_l0": 3 * 512 * 128,
        "gru.weight_hh_l0": 3 * 512 * 512,
        "fc1.weight": 512 * 256,
        "fc2.weight": 256 * 128,
    }
    assert sum(counts.values()) == 1_179_648
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_179_648 + 3_712
    assert list(maskable(model)) == [name for name in counts if name != "embedding.weight"]


def test_the_character_model_sees_no_character_that_follows() -> None:
    model = gru_lm(classes=30, width=0.1)
    assert model.get_parameter("gru.weight_hh_l0").shape == (153, 51)
    tokens = torch.randint(30, (2, 7))
    logits = model(tokens)
    assert logits.shape == (2, 7, 30)
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % 30
    changed = (model(other) != logits).any(2)
    assert not changed[:, :4].any()
    assert changed[:, 4:].all()


# ---- width


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_net_comes_in_any_width(name: str) -> None:
    sizes = []
    for width in (0.02, 0.3, 0.5):  # at 0.02 stages become equally wide
        model = build(name, input_shape=CIFAR, classes=10, seed=0, width=width).eval()
        if name == "gru_lm":
            assert model(torch.zeros(1, 7, dtype=torch.long)).shape == (1, 7, 10)
        else:
            assert model(torch.zeros(1, *CIFAR)).shape == (1, 10)
        sizes.append(size(model))
    assert sizes == sorted(set(sizes))
    with torch.device("cpu" if name in SMALL else "meta"):  # where numbers take their time, shapes
        full, usual = (build(name, input_shape=CIFAR, classes=10, seed=0, **more) for more in ({}, {"width": 1.0}))
    if name in SMALL:
        assert same(usual.state_dict(), full.state_dict())
    assert [tensor.shape for tensor in usual.parameters()] == [tensor.shape for tensor in full.parameters()]


@pytest.mark.parametrize("parameters", [3000, 8000, 50_610, 400_000])
def test_the_width_for_a_number_of_parameters(parameters: int) -> None:
    def net(width: float) -> nn.Module:
        return lenet_300_100(image_size=8, width=width)

    width = width_for(net, parameters)
    off = abs(size(net(width)) - parameters)
    for step in (-1e-4, 1e-4):
        assert off <= abs(size(net(width + step)) - parameters)
    assert off <= 250  # a neuron or so


def test_widths_that_there_are_not(own_nets: Path) -> None:
    with pytest.raises(ValueError, match="even at its narrowest the network has 45 parameters, not 9"):
        width_for(lambda width: nn.Linear(8, 5), 9)
    with pytest.raises(ValueError, match="times as wide the network has 45 parameters"):
        width_for(lambda width: nn.Linear(8, 5), 100)
    with pytest.raises(LabError, match="own_nets:image' takes no argument width"):
        build("own_nets:image", input_shape=DIGITS, classes=3, seed=0, width=0.5)
    assert build("own_nets:flat", input_shape=(6,), classes=3, seed=0, width=2)(torch.zeros(1, 6)).shape == (1, 3)


@pytest.fixture
def own_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets.py").write_text(
        """
from torch import nn

def wrong(): return 3
def fails(): return 1 / 0
def wants(width): return None

def flat(input_shape, classes, width=7):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], width), nn.Linear(width, classes))

def image(*, in_channels, image_size, classes):
    return nn.Sequential(nn.Conv2d(in_channels, 4, image_size), nn.Flatten(), nn.Linear(4, classes))

class Net(nn.Linear):
    def __init__(self, input_shape, classes, **rest):
        assert not rest
        super().__init__(*input_shape, classes)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_model_that_takes_no_images_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(*, classes: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(classes, 4), nn.Linear(4, classes))

    monkeypatch.setitem(MODELS, "pairs", pairs)
    model = build("pairs", input_shape=(16,), classes=5, seed=0)
    assert model(torch.zeros(2, 16, dtype=torch.int64)).shape == (2, 16, 5)
    with pytest.raises(
        LabError, match=r"model 'resnet20' takes images .* but one example of the data has shape \(16,\)"
    ):
        build("resnet20", input_shape=(16,), classes=5, seed=0)


def test_nets_of_the_users_own(own_nets: Path) -> None:
    flat = build("own_nets:flat", input_shape=(6,), classes=3, seed=0)
    assert flat(torch.zeros(2, 6)).shape == (2, 3)
    assert same(flat.state_dict(), build("own_nets:flat", input_shape=(6,), classes=3, seed=0).state_dict())
    assert build("own_nets:image", input_shape=DIGITS, classes=3, seed=0)(torch.zeros(2, *DIGITS)).shape == (2, 3)
    assert build("own_nets:Net", input_shape=(6,), classes=3, seed=0)(torch.zeros(2, 6)).shape == (2, 3)
