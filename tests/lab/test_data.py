"""Data sets: the digits, CIFAR-10 from a folder of its standard format, the user's own, and the order of an epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import same
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tombola.lab import cifar
from tombola.lab.data import PAD, Data, Loaders, augmented, cifar10, cifar100, cut, digits, load
from tombola.lab.data.augment import positions
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images

# ---- digits


def test_digits() -> None:
    data = digits()
    assert (data.input_shape, data.classes) == ((1, 8, 8), 10)
    assert [len(part) for part in (data.train_x, data.train_y, data.test_x, data.test_y)] == [1347, 1347, 450, 450]
    assert data.train_x.mean().abs() < 1e-6
    assert (data.train_x.std() - 1).abs() < 1e-6
    # undo the normalisation: the two parts are the 1,797 images of scikit-learn, each once, with its label
    bunch = load_digits()
    low, high = data.train_x.min(), data.train_x.max()
    pixels = torch.cat([data.train_x, data.test_x]).sub(low).mul(16 / (high - low)).round().flatten(1)
    mine = sorted((*map(int, x), int(y)) for x, y in zip(pixels, torch.cat([data.train_y, data.test_y]), strict=True))
    theirs = sorted((*map(int, x), int(y)) for x, y in zip(bunch.data, bunch.target, strict=True))
    assert mine == theirs
    share = data.test_y.bincount() / torch.from_numpy(bunch.target).bincount()  # stratified
    assert (share - 450 / 1797).abs().max() < 0.004
    assert torch.equal(digits().test_x, data.test_x)


# ---- the order of an epoch


def small(examples: int = 10, **more: Tensor) -> Data:
    x = torch.arange(examples * 2.0).view(examples, 2)
    y = torch.arange(examples) % 2
    return Data(x, y, x[:3], y[:3], 2, "small", **more)


def test_an_epoch_is_its_seed() -> None:
    data = small()
    batches = list(data.epoch(7, batch_size=4, augment=False))
    assert data.steps(4) == len(batches) == 2
    order = torch.randperm(10, generator=torch.Generator().manual_seed(7))
    for batch, chosen in zip(batches, (order[:4], order[4:8]), strict=True):
        assert torch.equal(batch[0], data.train_x[chosen])
        assert torch.equal(batch[1], data.train_y[chosen])
    torch.randn(3)  # nothing depends on the global generator
    state = torch.random.get_rng_state()
    again = list(data.epoch(7, batch_size=4, augment=False))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(batches, again)
    other = list(data.epoch(8, batch_size=4, augment=False))
    assert not same(batches, other)


def test_the_test_set_is_whole_and_in_order() -> None:
    x, y = torch.arange(250.0).view(-1, 1), torch.zeros(250).long()
    data = Data(x[:1], y[:1], x, y, 1, "long")
    assert [len(part) for part, _ in data.test()] == [100, 100, 50]
    elsewhere = dataclasses.replace(
        data, test_x=torch.empty(2500, 1, device="meta").byte(), test_y=torch.zeros(2500).long()
    )
    assert [len(part) for part, _ in elsewhere.test()] == [1000, 1000, 500]
    assert torch.equal(torch.cat([part for part, _ in data.test()]), x)


def test_normalisation_of_pixels() -> None:
    x = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    y = torch.zeros(1).long()
    mean, std = torch.tensor([0.5, 0.2]).view(2, 1, 1), torch.tensor([0.5, 0.1]).view(2, 1, 1)
    data = Data(x, y, x, y, 1, "pixels", mean=mean, std=std)
    for batches in (data.epoch(0, batch_size=1, augment=False), data.test()):
        ((out, _),) = batches
        assert torch.allclose(out, torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]), atol=1e-6)
    plain = Data(x, y, x, y, 1, "pixels")
    assert torch.equal(next(iter(plain.test()))[0], x / 255)


def test_augmentation_against_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (40, 3, 6, 5), generator=generator, dtype=torch.uint8)
    flip = torch.rand(40, generator=generator) < 0.5
    shift = torch.randint(0, 2 * PAD + 1, (40, 2), generator=generator)
    out = augmented(x, flip, shift)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    for image, flipped, (top, left), got in zip(x, flip, shift, out, strict=True):
        wide = np.pad(image.numpy(), ((0, 0), (PAD, PAD), (PAD, PAD)))
        crop = wide[:, top : top + 6, left : left + 5]
        assert np.array_equal(got.numpy(), crop[:, :, ::-1] if flipped else crop)


def test_augmented_epochs() -> None:
    x = torch.randint(1, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Data(x, torch.arange(64), x, torch.arange(64), 64, "images")
    one = list(data.epoch(5, batch_size=32, augment=True))
    two = list(data.epoch(5, batch_size=32, augment=True))
    plain = list(data.epoch(5, batch_size=32, augment=False))
    assert [len(part) for part in (one, two, plain)] == [2, 2, 2]
    same = flipped = 0
    for (a, ya), (b, yb), (c, yc) in zip(one, two, plain, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(ya, yb)
        assert torch.equal(ya, yc)  # the order of the examples is that of the seed
        for changed, image in zip(a, c, strict=True):
            # each is a crop of the image or of its mirror image; find out which by trying them all
            wide = torch.nn.functional.pad(image, (PAD,) * 4)
            crops = [wide[:, i : i + 8, j : j + 8] for i in range(2 * PAD + 1) for j in range(2 * PAD + 1)]
            straight = any(torch.equal(changed, crop) for crop in crops)
            mirrored = any(torch.equal(changed, crop.flip(2)) for crop in crops)
            assert straight or mirrored
            same += straight
            flipped += mirrored
    assert 16 < flipped < 48  # about half of 64
    assert 16 < same < 48
    with pytest.raises(LabError, match=r"augment: small has inputs of shape \(2,\), not images"):
        list(small().epoch(0, batch_size=2, augment=True))


def test_cutout_against_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(30, 2, 7, 5, generator=generator)
    centre = positions((30,), 7, 5, generator)
    assert centre.amin(0).tolist() == [0, 0]
    assert centre.amax(0).tolist() == [6, 4]
    for side in (1, 2, 3, 20):
        out = cut(x, centre, side)
        for image, (row, column), got in zip(x, centre.tolist(), out, strict=True):
            expected = image.clone()
            top, left = row - side // 2, column - side // 2
            expected[:, max(0, top) : top + side, max(0, left) : left + side] = 0
            assert torch.equal(got, expected)


def test_cutout_is_part_of_the_augmentation_and_off_by_default() -> None:
    x = torch.randint(1, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = Data(x, torch.arange(64), x, torch.arange(64), 64, "images")
    holed = dataclasses.replace(plain, cutout=6)
    assert plain.cutout == 0
    assert same(list(plain.test()), list(holed.test()))
    assert same(*(list(data.epoch(1, batch_size=8, augment=False)) for data in (plain, holed)))
    holes = []
    pairs = zip(plain.epoch(1, batch_size=8, augment=True), holed.epoch(1, batch_size=8, augment=True), strict=True)
    for (a, ya), (b, yb) in pairs:
        assert torch.equal(ya, yb)
        assert torch.equal(torch.where(b != 0, a, 0), b)  # the same flips and crops
        holes += ((a != 0) & (b == 0)).flatten(1).sum(1).tolist()
    assert 0 < sum(holes) / len(holes) <= 3 * 36
    assert same(*(list(holed.epoch(1, batch_size=8, augment=True)) for _ in range(2)))


def test_batches_that_are_too_large() -> None:
    with pytest.raises(LabError, match="batch_size is 11, but small has 10 examples: give 10 or less"):
        small().steps(11)


# ---- data that is wrong


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_y": torch.zeros(3).long()}, r"train set: \(10, 2\) inputs and \(3,\) labels"),
        ({"test_x": torch.zeros(0, 2), "test_y": torch.zeros(0).long()}, "test set: .* at least one"),
        ({"train_y": torch.zeros(10, 1).long()}, "one label for each input"),
        ({"train_y": torch.zeros(10)}, "labels are torch.float32: make them torch.int64"),
        ({"train_y": torch.full((10,), 2)}, "labels go from 2 to 2, but must lie in 0 … 1"),
        ({"test_y": torch.full((3,), -1)}, "test set: labels go from -1 to -1"),
        ({"train_x": torch.zeros(10, 2, dtype=torch.int64)}, "inputs are torch.int64"),
        ({"train_x": torch.full((10, 2), float("nan"))}, "train set: some inputs are NaN or infinite"),
        ({"test_x": torch.zeros(3, 5)}, r"\(2,\) to train, \(5,\) to test"),
    ],
)
def test_wrong_tensors(change: dict[str, Tensor], says: str) -> None:
    parts = {name: getattr(small(), name) for name in ("train_x", "train_y", "test_x", "test_y")} | change
    with pytest.raises(LabError, match=f"data 'small'.*{says}"):
        Data(**parts, classes=2, name="small")


def test_names_that_are_wrong() -> None:
    with pytest.raises(
        LabError,
        match="data 'mnist': there is digits, cifar10, cifar100, folder/NAME, text/NAME; or give your own as module",
    ):
        load("mnist")
    with pytest.raises(LabError, match="--data-dir"):
        load("cifar10")


# ---- CIFAR-10


def fabricated(folder: Path, images: int = 20, *, protocol: int = 2) -> dict[str, tuple[np.ndarray, list[int]]]:
    """A tiny folder in the format of CIFAR-10; file name -> its content."""
    draw = np.random.default_rng(0)
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    content = {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        x, y = draw.integers(0, 256, (images, 3072), dtype=np.uint8), draw.integers(0, 10, images).tolist()
        batch = {b"batch_label": b"some", b"labels": y, b"data": x, b"filenames": [b"a.png"] * images}
        (inner / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        content[name] = (x, y)
    return content


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_batch_is_read_as_it_was_written(protocol: int, tmp_path: Path) -> None:
    for name, (x, y) in fabricated(tmp_path, protocol=protocol).items():
        images, labels = cifar.read_batch(tmp_path / cifar.CIFAR10.folder / name, images=20)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images.numpy(), x.reshape(20, 3, 32, 32))
        assert labels.tolist() == y


def test_the_whole_folder(tmp_path: Path) -> None:
    content = fabricated(tmp_path, cifar.IMAGES, protocol=4)
    data = cifar10(tmp_path)
    assert (data.input_shape, data.classes, data.train_x.dtype) == ((3, 32, 32), 10, torch.uint8)
    assert (len(data.train_x), len(data.test_x)) == (50_000, 10_000)
    train = np.concatenate([content[f"data_batch_{number}"][0] for number in range(1, 6)])
    assert np.array_equal(data.train_x.numpy().reshape(-1, 3072), train)
    assert data.test_y.tolist() == content["test_batch"][1]
    x, _ = next(iter(data.test()))
    by_hand = (content["test_batch"][0][0].reshape(3, 1024) - np.array([[125.3], [123.0], [113.9]])) / np.array(
        [[63.0], [62.1], [66.7]]
    )
    assert np.allclose(x[0].flatten(1).numpy(), by_hand, atol=1e-5)
    inner = tmp_path / cifar.CIFAR10.folder
    found = load("cifar10", data_dir=inner)  # the inner folder will do as well
    assert same(next(found.epoch(0, batch_size=2, augment=False)), next(data.epoch(0, batch_size=2, augment=False)))
    (inner / "data_batch_4").unlink()
    with pytest.raises(LabError, match=r"there is no data_batch_4; --data-dir must name the unpacked cifar-10"):
        cifar10(tmp_path)
    with pytest.raises(LabError, match="there is no such folder; --data-dir must name"):
        cifar10(tmp_path / "nowhere")


def test_cifar100(tmp_path: Path) -> None:
    inner = tmp_path / "cifar-100-python"
    inner.mkdir()
    draw = np.random.default_rng(1)
    content = {}
    for name, images in (("train", 50_000), ("test", 10_000)):
        x, y = draw.integers(0, 256, (images, 3072), dtype=np.uint8), draw.integers(0, 100, images).tolist()
        both = {b"data": x, b"fine_labels": y, b"coarse_labels": [label // 5 for label in y]}
        (inner / name).write_bytes(pickle.dumps(both, protocol=4))
        content[name] = (x, y)
    data = load("cifar100", data_dir=tmp_path, inputs=Images(cutout=8))
    assert isinstance(data, Data)
    assert (data.classes, data.name, data.input_shape, data.cutout) == (100, "cifar100", (3, 32, 32), 8)
    assert np.array_equal(data.train_x.numpy().reshape(-1, 3072), content["train"][0])
    assert data.train_y.tolist() == content["train"][1]
    assert data.test_y.tolist() == content["test"][1]
    assert data.original is False  # not the publisher's files
    (inner / "test").write_bytes((inner / "test").read_bytes()[:-1000])
    with pytest.raises(LabError, match=r"100-python/test: .*unpack the archive of CIFAR-100 \(python version\) again"):
        cifar100(inner)
    (inner / "test").unlink()
    with pytest.raises(LabError, match="there is no test; --data-dir must name the unpacked cifar-100-python folder"):
        cifar100(inner)
    with pytest.raises(LabError, match="say where its cifar-100-python folder is with --data-dir"):
        load("cifar100")
    with pytest.raises(LabError, match="size, channels and skip_damaged are for image folders"):
        load("cifar100", data_dir=tmp_path, inputs=Images(size=8))


def test_labels_of_the_other_cifar(tmp_path: Path) -> None:
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"fine_labels": [0, 100]}))
    with pytest.raises(LabError, match="a label is not a whole number from 0 to 99"):
        cifar.read_batch(path, cifar.CIFAR100, images=2)
    with pytest.raises(LabError, match="has no b'data' and b'labels', so is no batch of CIFAR-10;"):
        cifar.read_batch(path, images=2)


def test_the_publishers_own_files_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = fabricated(tmp_path, cifar.IMAGES, protocol=4)
    assert cifar10(tmp_path).original is False
    digests = {
        name: hashlib.md5((tmp_path / cifar.CIFAR10.folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        for name in content
    }
    test = {"test_batch": digests.pop("test_batch")}
    monkeypatch.setattr(cifar, "CIFAR10", dataclasses.replace(cifar.CIFAR10, train=digests, test=test))
    assert cifar10(tmp_path).original is True
    assert digits().original is None


def test_the_real_one() -> None:
    folder = os.environ.get("TOMBOLA_DATA")
    if folder is None:
        pytest.skip("set TOMBOLA_DATA to the folder that holds cifar-10-batches-py")
    data = cifar10(Path(folder))
    assert (len(data.train_x), len(data.test_x)) == (50_000, 10_000)
    assert data.train_y.bincount().tolist() == [5000] * 10
    assert data.test_y.bincount().tolist() == [1000] * 10
    for start in (0, 40_000):  # normalised, the channels have mean 0 and deviation 1 (nearly: JPEG copies exist)
        x = data._normalised(data.train_x[start : start + 10_000])
        assert x.mean((0, 2, 3)).abs().max() < 0.05
        assert (x.std((0, 2, 3)) - 1).abs().max() < 0.05


TRAP: list[str] = []


def sprung(*arguments: object) -> str:
    TRAP.append("sprung")
    return "sprung"


class _Reduced:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _poisoned(function: Callable[..., object], *arguments: object) -> list[bytes]:
    call = _Reduced(function, *arguments)
    x = np.zeros((2, 3072), dtype=np.uint8)
    return [
        pickle.dumps(content, protocol=protocol)
        for protocol in (0, 2, 4)
        for content in (call, {b"data": x, b"labels": call}, {b"data": call, b"labels": [0, 0]}, {call: 1})
    ]


def test_hostile_pickles_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "data_batch_1"
    poisons = [
        *_poisoned(os.system, f"touch {mark}"),
        *_poisoned(eval, f"open({str(mark)!r}, 'w')"),
        *_poisoned(sprung),
        *_poisoned(getattr, "a text", "format"),
        *_poisoned(np.fromfile, str(path)),
        b"cnumpy\nndarray.__init__\n.",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x08touch x\x85R.",
        b"cbuiltins\nexec\n(S'raise SystemExit'\ntR.",
        b"cnumpy\ndtype\n(S'O8'\ntR.",
    ]
    for poison in poisons:
        path.write_bytes(poison)
        with pytest.raises(LabError, match="unpack the archive of CIFAR-10") as caught:
            cifar.read_batch(path, images=2)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(path))
    assert not mark.exists()
    assert TRAP == []


def _batch(**changes: object) -> bytes:
    good = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 9]}
    return pickle.dumps(good | {key.encode(): value for key, value in changes.items()}, protocol=2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"PK\x03\x04 a zip file",
        b"\x1f\x8b\x08 a tar.gz",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 1}),
        pickle.dumps({b"data": 1, b"fine_labels": [1], b"coarse_labels": [2]}),  # CIFAR-100
        _batch(data=b"bytes"),
        _batch(data=np.zeros((2, 3071), dtype=np.uint8)),
        _batch(data=np.zeros((3, 3072), dtype=np.uint8)),
        _batch(data=np.zeros((2, 3072), dtype=np.float32)),
        _batch(data=np.zeros((3072, 2), dtype=np.uint8).T),
        _batch(data=np.zeros((2, 3072), dtype=object)),
        _batch(labels=[0]),
        _batch(labels=[0, 10]),
        _batch(labels=[0, -1]),
        _batch(labels=[0, 0.5]),
        _batch(labels=[True, False]),
        _batch(labels=np.zeros(2, dtype=np.uint8)),
        _batch()[:-100],
        pickle.dumps({b"x" * 5000: 1}) + b"rest",
    ],
)
def test_files_that_are_no_batch(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(LabError, match="unpack the archive of CIFAR-10") as caught:
        cifar.read_batch(path, images=2)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_fuzz_of_a_batch(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(_batch())
    ends = st.integers(0, 300) | st.integers(len(content) - 300, len(content) - 1)  # where it is not all pixels
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(ends)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed_batch"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        images, labels = cifar.read_batch(path, images=2)
    except LabError:
        return
    assert images.shape == (2, 3, 32, 32)
    assert labels.shape == (2,)


def test_a_file_too_large_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    with path.open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(LabError, match="bytes are too many"):
        cifar.read_batch(path)


# ---- the user's own


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Writes a module into the current folder, under a name that no other test uses, and returns that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "own_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text("import torch\nfrom tombola.lab.data import Data, Loaders\n" + text)
        return name

    return write


def test_tensors_of_the_users_own(module: Callable[[str], str], tmp_path: Path) -> None:
    name = module(
        """
def tensors():
    return torch.zeros(6, 4), torch.arange(6) % 3, torch.ones(2, 4), torch.tensor([0, 2])

def ready(data_dir):
    assert data_dir is not None
    return Data(torch.zeros(6, 4), torch.arange(6) % 3, torch.ones(2, 4), torch.tensor([0, 2]), 5, str(data_dir))
"""
    )
    data = load(f"{name}:tensors")
    assert isinstance(data, Data)
    assert (data.classes, data.input_shape, data.steps(3), data.name) == (3, (4,), 2, f"{name}:tensors")
    ready = load(f"{name}:ready", data_dir=tmp_path)
    assert isinstance(ready, Data)
    assert (ready.classes, ready.name) == (5, str(tmp_path))


def test_loaders() -> None:
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6)
    train = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)
    data = Loaders(train, DataLoader(TensorDataset(x, y), batch_size=4), classes=6, input_shape=(2,), name="mine")
    with torch.random.fork_rng():
        one = [batch for _, batch in data.epoch(3, batch_size=2, augment=False)]
        torch.randn(5)
        two = [batch for _, batch in data.epoch(3, batch_size=2, augment=False)]
        other = [batch for _, batch in data.epoch(4, batch_size=2, augment=False)]
    assert sorted(torch.cat(one).tolist()) == list(range(6))
    assert torch.cat(one).tolist() == torch.cat(two).tolist()
    assert torch.cat(one).tolist() != torch.cat(other).tolist()
    assert data.steps(2) == 3
    assert [len(labels) for _, labels in data.test()] == [4, 2]
    with pytest.raises(LabError, match="batch_size is 3, but the loader of mine makes batches of 2"):
        data.steps(3)
    with pytest.raises(LabError, match="augment: mine is read through a DataLoader"):
        list(data.epoch(0, batch_size=2, augment=True))


def test_a_loader_with_a_generator_of_its_own() -> None:
    x, y = torch.zeros(6, 2), torch.arange(6)
    train = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, generator=torch.Generator())
    data = Loaders(train, train, classes=6, input_shape=(2,), name="mine")
    with torch.random.fork_rng():
        (one,), (two,) = ([y.tolist() for _, y in data.epoch(3, batch_size=6, augment=False)] for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no function 'f'"),
        ("f = 3", "has 'f', but that is no function"),
        ("def f(): return 1", "the function returned int, not"),
        ("def f(): return 1, 2, 3, 4", r"returned \(int, int, int, int\), not"),
        ("def f(path): pass", "needs the argument 'path'; it may only need some of: data_dir"),
        ("def f(data_dir): pass", "needs data_dir; give it with --data-dir"),
        ("def f(data_dir=3): return data_dir", "the function returned int, not"),
        ("def f(): raise KeyError('x')", "failed: KeyError"),
        ("def f(): return torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2)", "labels are"),
        ("raise RuntimeError('at import')", "importing .* failed: RuntimeError: at import"),
        ("raise SystemExit(2)", "importing .* failed: SystemExit: 2"),
        ("import nowhere_to_be_found", "no module 'nowhere_to_be_found' and .* imports it"),
    ],
)
def test_functions_that_fail(text: str, says: str, module: Callable[[str], str]) -> None:
    with pytest.raises(LabError, match=says):
        load(f"{module(text)}:f")


@pytest.mark.parametrize("name", [":", ":f", "m:", "nowhere_to_be_found:f"])
def test_names_that_are_no_function(name: str) -> None:
    with pytest.raises(LabError, match="data"):
        load(name)
