"""Image folders: small ones in memory, others read anew in each epoch, and what can be wrong with them."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from loop import same
from PIL import Image
from torch import Tensor

from tombola.lab.cli.main import run
from tombola.lab.cli.recipes import Training
from tombola.lab.data import Data, Part, images, load
from tombola.lab.data.folder import all_grey, image_folder
from tombola.lab.data.stream import MEAN, STD, Stream
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Text

SMALL = Images()
LARGE = Images(size=16)


def silent(text: str) -> None:
    raise AssertionError(text)


def made(
    root: Path,
    *,
    sizes: Sequence[tuple[int, int]] = ((12, 10),),
    parts: Sequence[str] = ("train", "val"),
    images: int = 6,
    kinds: Sequence[str] = ("png",),
) -> Path:
    """A folder of noise: classes "cat" and "dog"."""
    draw = np.random.default_rng(0)
    for part in parts:
        for name in ("dog", "cat"):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                width, height = sizes[number % len(sizes)]
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.{kinds[number % len(kinds)]}")
    return root


def opened(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


# ---- in memory


def test_small_images_live_in_memory(tmp_path: Path) -> None:
    data = load("folder/pets", data_dir=made(tmp_path / "pets"))
    assert isinstance(data, Data)
    assert (data.name, data.classes, data.input_shape, data.train_x.dtype) == (
        "folder/pets", 2, (3, 10, 12), torch.uint8,
    )  # fmt: skip
    assert data.train_y.tolist() == data.test_y.tolist() == [0] * 6 + [1] * 6
    for place, name in ((0, "train/cat/0.png"), (5, "train/cat/5.png"), (6, "train/dog/0.png")):
        assert torch.equal(data.train_x[place], opened(tmp_path / "pets" / name))
    pixels = data.train_x.double() / 255
    assert data.mean is not None
    assert data.std is not None
    assert torch.allclose(data.mean.flatten().double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(
        data.std.flatten().double(), pixels.transpose(0, 1).flatten(1).std(1, correction=0), atol=1e-6
    )
    whole = torch.cat([x for x, _ in data.epoch(0, batch_size=12, augment=False)])
    assert whole.mean((0, 2, 3)).abs().max() < 1e-5
    itself = load("folder/pets", data_dir=tmp_path / "pets", workers=3)  # the folder, or the one around it
    assert same(list(itself.test()), list(load("folder/pets", data_dir=tmp_path).test()))


def test_a_test_folder_without_classes_is_passed_over(tmp_path: Path) -> None:
    root = made(tmp_path)
    (root / "test").mkdir()
    Image.new("RGB", (12, 10)).save(root / "test" / "unlabelled.png")
    assert len(list(load(f"folder/{root.name}", data_dir=root).test())) == 1
    made(root / "more", parts=("test",), images=2)
    (root / "test").joinpath("unlabelled.png").unlink()
    (root / "test").rmdir()
    (root / "more" / "test").rename(root / "test")
    (_, y), = load(f"folder/{root.name}", data_dir=root).test()  # fmt: skip
    assert y.tolist() == [0, 0, 1, 1]


def test_grey_and_transparent_images_are_made_coloured(tmp_path: Path) -> None:
    root = made(tmp_path / "mixed", images=1)
    Image.new("L", (12, 10), 7).save(root / "train" / "cat" / "1.png")
    Image.new("RGBA", (12, 10), (1, 2, 3, 4)).save(root / "train" / "cat" / "2.PNG")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    data = load("folder/mixed", data_dir=root)
    assert isinstance(data, Data)
    assert data.train_x[1].unique().tolist() == [7]
    assert [channel.unique().tolist() for channel in data.train_x[2]] == [[1], [2], [3]]


# ---- grey images


def greyed(root: Path) -> Path:
    """The same folder with its images in grey."""
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return root


def test_grey_images_have_one_channel_when_asked(tmp_path: Path) -> None:
    root = greyed(made(tmp_path / "pets"))
    grey, colour = (load("folder/pets", data_dir=root, inputs=Images(channels=c)) for c in (1, 3))
    assert isinstance(grey, Data)
    assert isinstance(colour, Data)
    assert (grey.input_shape, colour.input_shape) == ((1, 10, 12), (3, 10, 12))
    assert torch.equal(grey.train_x[6, 0], torch.from_numpy(np.array(Image.open(root / "train" / "dog" / "0.png"))))
    assert torch.equal(grey.train_x.expand(-1, 3, -1, -1), colour.train_x)
    pixels = grey.train_x.double() / 255
    assert grey.mean is not None
    assert grey.std is not None
    assert (grey.mean.shape, grey.std.shape) == ((1, 1, 1), (1, 1, 1))
    assert float(grey.mean) == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert float(grey.std) == pytest.approx(float(pixels.std(correction=0)), abs=1e-6)
    x, _ = next(grey.epoch(0, batch_size=4, augment=True))
    assert x.shape == (4, 1, 10, 12)


def test_coloured_images_can_be_read_in_grey(tmp_path: Path) -> None:
    root = made(tmp_path / "pets")
    data = load("folder/pets", data_dir=root, inputs=Images(channels=1))
    assert isinstance(data, Data)
    red, green, blue = opened(root / "train" / "cat" / "0.png").double()
    assert (data.train_x[0, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() <= 1  # ITU-R 601-2 luma


def test_grey_images_are_streamed(tmp_path: Path) -> None:
    root = greyed(made(tmp_path / "big", sizes=((40, 30), (33, 50))))
    for workers in (0, 1):
        data = image_folder(root, Images(size=16, channels=1), name="big", workers=workers, tell=silent)
        assert data.input_shape == (1, 16, 16)
        x, _ = next(iter(data.epoch(3, batch_size=5, augment=True)))
        assert x.shape == (5, 1, 16, 16)
    (x, _), = data.test()  # fmt: skip
    image = Image.open(root / "val" / "cat" / "0.png")
    side = 30 / 256 * 224
    box = ((40 - side) / 2, (30 - side) / 2, (40 + side) / 2, (30 + side) / 2)
    by_hand = np.array(image.resize((16, 16), Image.Resampling.BILINEAR, box=box)).astype(float) / 255
    assert np.allclose(x[0, 0].numpy(), (by_hand - sum(MEAN) / 3) / (sum(STD) / 3), atol=0.01)


def test_what_is_asked_for_is_what_the_folder_has(tmp_path: Path) -> None:
    """The run's identity says how many channels it reads, so the command line looks; a run never guesses."""
    root = greyed(made(tmp_path / "pets"))
    choices = {"data": "folder", "data_dir": root, "model": "conv_digits", "image_size": 8}
    assert Training(**choices).inputs == Images(size=8, channels=1)
    assert Training(**choices, channels="3").inputs == Images(size=8)
    (root / "train" / "cat" / "damaged.png").write_bytes(b"damaged")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    assert all_grey(root)
    Image.new("P", (12, 10)).save(root / "val" / "dog" / "9.png")
    assert not all_grey(root)
    assert Training(**choices).inputs == Images(size=8)
    assert Training(**choices, channels="1").inputs == Images(size=8, channels=1)
    assert not all_grey(tmp_path / "nowhere")
    assert not all_grey(root / "train" / "cat")


@pytest.mark.parametrize("channels", [1, 3])
def test_more_than_eight_bits_are_not_cut_off(channels: Literal[1, 3], tmp_path: Path) -> None:
    root = made(tmp_path / "pets")
    Image.fromarray(np.full((10, 12), 40_000, dtype=np.uint16)).save(root / "train" / "dog" / "2.png")
    with pytest.raises(LabError, match=r"dog/2.png: has more than 8 bits a channel, .* convert it to 8 bits"):
        load("folder/pets", data_dir=root, inputs=Images(channels=channels))


def test_channels_are_for_folders() -> None:
    with pytest.raises(LabError, match="data 'digits': size, channels and skip_damaged are for image folders"):
        load("digits", inputs=Images(channels=1))
    with pytest.raises(ValueError, match="channels must be 1 or 3, not 2"):
        Images(channels=2)  # type: ignore[arg-type]


# ---- read anew in each epoch


def test_large_images_are_streamed(tmp_path: Path) -> None:
    root = made(tmp_path / "big", sizes=((40, 30), (33, 50)), kinds=("png", "jpg", "webp", "jpeg"))
    data = image_folder(root, LARGE, name="big", tell=silent)
    assert isinstance(data, Stream)
    assert (data.classes, data.input_shape, data.steps(5)) == (2, (3, 16, 16), 2)
    plain, augmented = (list(data.epoch(3, batch_size=5, augment=augment)) for augment in (False, True))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))[:10].view(2, 5)
    for part in (plain, augmented):
        assert [y.tolist() for _, y in part] == (order // 6).tolist()
        assert {x.shape for x, _ in part} == {(5, 3, 16, 16)}
    assert not same(plain, augmented)
    assert same(augmented, list(data.epoch(3, batch_size=5, augment=True)))
    assert not same(augmented, list(data.epoch(4, batch_size=5, augment=True)))
    (x, y), = data.test()  # fmt: skip
    assert y.tolist() == [0] * 6 + [1] * 6
    image = Image.open(root / "val" / "cat" / "0.png")
    side = 30 / 256 * 224
    box = ((40 - side) / 2, (30 - side) / 2, (40 + side) / 2, (30 + side) / 2)
    by_hand = np.array(image.resize((16, 16), Image.Resampling.BILINEAR, box=box)).astype(float) / 255
    assert np.allclose(x[0].permute(1, 2, 0).numpy(), (by_hand - MEAN) / STD, atol=1e-5)


def test_the_same_bits_on_any_number_of_workers(tmp_path: Path) -> None:
    root = made(tmp_path / "big", sizes=((40, 30), (33, 50)), images=12)
    (root / "train" / "cat" / "3.png").write_bytes(b"damaged")
    seen, told = [], []
    state = torch.random.get_rng_state()
    for workers in (0, 1, 2):
        said: list[str] = []
        inputs = Images(size=16, cutout=6, skip_damaged=True)
        data = image_folder(root, inputs, name="big", workers=workers, tell=said.append)
        epochs = [list(data.epoch(seed, batch_size=8, augment=True)) for seed in (1, 2)]
        next(iter(data.test()))  # whoever only looks leaves the rest unread
        epochs.append(list(data.epoch(1, batch_size=8, augment=False)))
        seen.append([*epochs, list(data.test())])
        told.append(said)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(seen[0], seen[1])
    assert same(seen[0], seen[2])
    assert [len(y) for _, y in seen[0][0]] == [8, 7, 8]  # without the damaged one
    assert told[0] == told[1] == told[2]
    (line,) = told[0]  # once, not in each epoch
    assert line.startswith(
        f"big: 1 of 24 images left out as damaged; the first is {root / 'train' / 'cat' / '3.png'}: not"
    )


def test_parts_of_what_is_read_make_up_the_batches(tmp_path: Path) -> None:
    """Cut at the same places too, and empty where all images of a part are damaged."""
    root = made(tmp_path / "big", sizes=((40, 30),), images=12)
    for number in range(0, 12, 3):
        (root / "train" / "cat" / f"{number}.png").write_bytes(b"damaged")
    inputs, found, united = Images(size=16, cutout=6, skip_damaged=True), [], list[set[str]]()

    def unite(problems: set[str]) -> set[str]:
        united.append(problems)
        return problems

    for part in (Part(), *(Part(index=index, count=4, united=unite) for index in range(4))):
        data = image_folder(root, inputs, name="big", tell=lambda text: None)
        found.append([list(data.epoch(1, batch_size=4, augment=True, part=part)), list(data.test(part))])
    whole, *parts = found
    for batch, *pieces in zip(whole[0], *(epoch for epoch, _ in parts), strict=True):
        for both, each in zip(batch, zip(*pieces, strict=True), strict=True):
            assert torch.equal(both, torch.cat(each))
    assert any(len(y) == 0 for epoch, _ in parts for _, y in epoch)
    assert same(whole[1], [batch for _, test in parts for batch in test])
    assert len(set[str]().union(*united)) == 4


READER = """
import sys
from pathlib import Path
from tombola.lab.data.folder import image_folder
from tombola.lab.inputs import Images

if __name__ == "__main__":
    data = image_folder(Path(sys.argv[1]), Images(size=16), name="big", workers=2, tell=print)
    batches = data.epoch(0, batch_size=2, augment=True)
    next(batches)
    print(*(process.pid for process in data._training.loader._iterator._workers), flush=True)
    sys.stdin.read()
"""


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_no_reader_outlives_a_process_that_was_killed(tmp_path: Path) -> None:
    root = made(tmp_path / "big", sizes=((40, 30),))
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, str(tmp_path / "reader.py"), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        readers = [int(word) for word in process.stdout.readline().split()]
        assert len(readers) == 2
        assert all(map(running, readers))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(map(running, readers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(running, readers))


def test_random_crops() -> None:
    draw = random.Random(0)
    for width, height in ((500, 375), (31, 200), (1, 1), (7, 4000), (64, 64)):
        boxes = [images.random_box(width, height, draw) for _ in range(300)]
        assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in boxes)
        if width == 500:
            areas = [(c - a) * (d - b) / (width * height) for a, b, c, d in boxes]
            ratios = [(c - a) / (d - b) for a, b, c, d in boxes]
            assert 0.07 < min(areas) < 0.15
            assert 0.85 < max(areas) <= 1
            assert 0.7 < min(ratios) < 0.8
            assert 1.2 < max(ratios) < 1.4
            assert len(set(boxes)) > 290
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    crops = [images.cropped(image, 8, seed) for seed in range(40)]
    assert all(torch.equal(crop, images.cropped(image, 8, seed)) for seed, crop in enumerate(crops))
    assert len({crop.numpy().tobytes() for crop in crops}) == 40
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))  # brighter to the right
    mirrored = [bool(images.cropped(ramp, 8, seed)[0, 0].int().diff().sum() < 0) for seed in range(200)]
    assert 70 < sum(mirrored) < 130


# ---- what can be wrong


def without(root: Path, name: str) -> None:
    for path in sorted((root / name).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / name).rmdir()


def damaged(root: Path) -> None:
    whole = (root / "train" / "dog" / "2.png").read_bytes()
    (root / "train" / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("change", "inputs", "says"),
    [
        (lambda root: without(root, "train"), SMALL, "there is no train folder in it; --data-dir must name a folder"),
        (lambda root: without(root, "val"), SMALL, "there is neither test/CLASS nor val/CLASS in it; --data-dir must"),
        (lambda root: without(root, "train/dog"), SMALL, "val has the class 'dog' and train has not .1 classes to"),
        (lambda root: without(root, "val/cat"), LARGE, "train has the class 'cat' and val has not .2 classes to train"),
        (lambda root: [p.unlink() for p in (root / "val/cat").iterdir()], SMALL, "val/cat: has no png, jpg, jpeg or"),
        (damaged, SMALL, "train/dog/2.png: not a readable image, or damaged .*--skip-damaged"),
        (lambda root: (root / "val/cat/0.png").write_bytes(b""), SMALL, "val/cat/0.png: not a readable image"),
        (lambda root: (root / "val/cat/0.png").write_text("GIF"), LARGE, "val/cat/0.png: not a readable image"),
        (
            lambda root: Image.new("RGB", (9, 10)).save(root / "train" / "dog" / "1.png"),
            SMALL,
            "train/dog/1.png: has 9×10, but .*train/cat/0.png 12×10; give --image-size",
        ),
    ],
)  # fmt: skip
def test_folders_that_are_wrong(change: Callable[[Path], object], inputs: Images, says: str, tmp_path: Path) -> None:
    root = made(tmp_path / "pets")
    change(root)
    with pytest.raises(LabError, match=f"^{root}.*{says}") as caught:
        list(image_folder(root, inputs, name="folder/pets", tell=silent).test())
    assert "\n" not in str(caught.value)


def test_damaged_images_are_left_out_when_asked(tmp_path: Path) -> None:
    root = made(tmp_path / "pets")
    damaged(root)
    said: list[str] = []
    data = load("folder/pets", data_dir=root, inputs=Images(skip_damaged=True), tell=said.append)
    assert isinstance(data, Data)
    assert data.train_y.tolist() == [0] * 6 + [1] * 5
    assert torch.equal(data.train_x[8], opened(root / "train" / "dog" / "3.png"))
    (line,) = said
    assert "folder/pets: 1 of 12 images left out as damaged; the first is" in line
    assert "dog/2.png" in line
    with pytest.warns(UserWarning, match="1 of 12 images left out"):
        load("folder/pets", data_dir=root, inputs=Images(skip_damaged=True))
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(LabError, match="not a readable image"):
        load("folder/pets", data_dir=root, inputs=Images(skip_damaged=True), tell=said.append)
    stream = load("folder/pets", data_dir=root, inputs=Images(size=8, skip_damaged=True), tell=said.append)
    with pytest.raises(LabError, match="not a readable image"):  # a batch of which nothing is left
        next(stream.epoch(0, batch_size=4, augment=False))


def test_too_many_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "pets")
    monkeypatch.setattr("tombola.lab.data.folder.LARGEST", 1000)
    with pytest.raises(LabError, match="12 images of 12×10 do not fit into memory; give --image-size"):
        load("folder/pets", data_dir=tmp_path)


def test_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="data 'folder/pets': say where pets is with --data-dir"):
        load("folder/pets")
    with pytest.raises(LabError, match=f"{tmp_path / 'pets'}: there is no such file or folder"):
        load("folder/pets", data_dir=tmp_path)
    with pytest.raises(LabError, match="is read as Images, not as Text"):
        load("folder/pets", data_dir=made(tmp_path / "pets"), inputs=Text())
    with pytest.raises(LabError, match="data 'folder': there is digits"):
        load("folder", data_dir=tmp_path)


# ---- the command line


@pytest.mark.usefixtures("without_workers")
def test_a_folder_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "pets", sizes=((40, 30),), images=10)
    (root / "train" / "cat" / "0.png").write_bytes(b"damaged")
    options = ["--model", "conv_digits", "--epochs", "2", "--batch-size", "10", "--jobs", "1", "--workers", "2"]
    out = ["--out", str(tmp_path / "runs"), "--data", "folder", "--data-dir", str(root), "--method", "rigl"]
    assert run(["train", *options, *out, "--image-size", "8", "--density", "0.5", "--no-dense"]) == 1
    assert "cat/0.png: not a readable image" in capsys.readouterr().err
    assert run(["train", *options, *out, "--image-size", "8", "--density", "0.5", "--skip-damaged"]) == 0
    said = capsys.readouterr()
    assert "conv_digits on folder/pets" in said.out
    assert "1 of 20 images left out as damaged" in said.err
    names = [path.name for path in (tmp_path / "runs").iterdir() if "folder.pets" in path.name]
    assert len(names) == 3


@pytest.mark.parametrize(
    ("asked", "augment", "cutout"),
    [
        ({}, False, 0),
        ({"model": "resnet20"}, True, 0),
        ({"image_size": 12}, True, 0),
        ({"image_size": 12, "augment": False}, False, 0),
        ({"augment": True}, True, 0),
        ({"cutout": 4}, True, 4),
    ],
)
def test_when_images_are_augmented(asked: dict[str, Any], augment: bool, cutout: int, tmp_path: Path) -> None:
    choices = {"data": "folder", "data_dir": made(tmp_path / "pets", sizes=((12, 12),)), "model": "conv_digits"}
    base, _ = Training(**(choices | asked), batch_size=4).base()
    assert (base.data, base.augment) == ("folder/pets", augment)
    assert isinstance(base.inputs, Images)
    assert (base.inputs.cutout, base.inputs.size) == (cutout, asked.get("image_size"))
    with pytest.raises(LabError, match="--cutout: is part of the augmentation"):
        Training(**choices, batch_size=4, cutout=2, augment=False).base()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "folder"], "--data folder: say which with --data-dir"),
        (["--image-size", "8"], "--image-size: is for --data folder, not digits"),
        (["--skip-damaged"], "--skip-damaged: is for --data folder, not digits"),
        (["--channels", "1"], "--channels: is for --data folder, not digits"),
        (["--channels", "2"], "--channels: '2' is not one of '1', '3'"),
        (["--length", "8"], "--length: is for --data text, not digits"),
        (["--data", "cifar10", "--unit", "bytes"], "--unit: is for --data text, not cifar10"),
        (["--cutout", "4"], "--cutout: is for --data cifar10 or cifar100 or folder, not digits"),
        (["--augment"], "--augment: is for --data cifar10 or cifar100 or folder, not digits"),
        (["--cutout", "0"], "--cutout: must be a whole number, 1 or more, not '0'"),
    ],
)
def test_options_that_do_not_fit_the_data(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *arguments]) == 2
    assert says in capsys.readouterr().err
