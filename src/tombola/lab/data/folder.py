"""Image folders: ``root/train/CLASS/*`` to train, ``root/test/CLASS/*`` or ``root/val/CLASS/*`` to test.

Small images, all of one size, are decoded once and live in memory; others are read anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from tombola.lab.data.images import (
    Files,
    class_names,
    decoded,
    image_files,
    is_grey,
    listed,
    pixels,
    without_warnings,
)
from tombola.lab.data.stream import Stream, skipped
from tombola.lab.data.tensors import Data
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images

LARGEST = 4 * 2**30  # bytes of pixels that are held in memory
AT_ONCE = 1000  # images that are decoded ahead
TEST_FOLDERS = ("test", "val")  # ImageNet's test images have no labels, and so no folders


def image_folder(
    root: Path, inputs: Images, *, name: str, workers: int = 0, tell: Callable[[str], None]
) -> Data | Stream:
    """The data set in ``root``.

    Args:
        root: the folder that holds ``train`` and ``test`` or ``val``.
        inputs: how the images are read. Without a size they must all have the same one.
        name: of the data set.
        workers: processes, or threads for what goes into memory, that read; 0: this one does.
        tell: told how many damaged images were left out, if they were to be.

    Raises:
        LabError: a folder or a class is missing, an image is damaged, images differ in size or do not fit into memory.
    """
    test = next((part for part in TEST_FOLDERS if class_names(root / part)), None)
    for part in ("train", test):
        if part is None or not (root / part).is_dir():
            wanted = "train/CLASS and test/CLASS or val/CLASS"
            problem = f"there is no {part} folder in it" if part else "there is neither test/CLASS nor val/CLASS in it"
            problem = problem if root.is_dir() else "there is no such folder"
            raise LabError(f"{root}: {problem}; --data-dir must name a folder with {wanted}, images of a class in each")
    assert test is not None
    files = listed(root / "train"), listed(root / test)
    if files[0].classes != files[1].classes:
        odd = sorted(set(files[0].classes) ^ set(files[1].classes))[0]
        has, lacks = ("train", test) if odd in files[0].classes else (test, "train")
        raise LabError(
            f"{root}: {has} has the class {odd!r} and {lacks} has not ({len(files[0].classes)} classes to train, "
            f"{len(files[1].classes)} to test); give both the same folders"
        )
    if inputs.size is not None:
        return Stream(
            train=files[0], test_files=files[1], size=inputs.size, cutout=inputs.cutout, channels=inputs.channels,
            skip_damaged=inputs.skip_damaged, name=name, workers=workers, tell=tell,
        )  # fmt: skip
    with without_warnings():
        parts = [_in_memory(part, inputs, name, workers) for part in files]
    for (_, _, damaged), listing in zip(parts, files, strict=True):
        if damaged:
            tell(skipped(name, len(damaged), len(listing.paths), damaged[0]))
    (train_x, train_y, _), (test_x, test_y, _) = parts
    mean, std = _statistics(train_x)
    return Data(
        train_x, train_y, test_x, test_y, len(files[0].classes), name, mean=mean, std=std, cutout=inputs.cutout
    )  # fmt: skip


def all_grey(root: Path) -> bool:
    """Whether all images of the data set in ``root`` are grey, as far as they can be read; False if there is none."""
    found = False
    with without_warnings():
        for part in ("train", *TEST_FOLDERS):
            for name in class_names(root / part):
                for path in image_files(root / part / name):
                    grey = is_grey(path)
                    if grey is False:
                        return False
                    found = found or grey is True
    return found


def _in_memory(files: Files, inputs: Images, name: str, workers: int) -> tuple[Tensor, Tensor, list[str]]:
    """Pixels (N, channels, height, width) and labels (N,) of the good images, and what is wrong with the others."""
    x: Tensor | None = None
    first, good, damaged = "", list[int](), list[str]()
    for place, image in enumerate(_all(files.paths, inputs.channels, workers)):
        if isinstance(image, LabError):
            if not inputs.skip_damaged:
                raise image
            damaged.append(str(image))
            continue
        if x is None:
            if len(files.paths) * image.numel() > LARGEST:
                raise LabError(
                    f"data {name!r}: {len(files.paths):,} images of {image.shape[2]}×{image.shape[1]} do not fit into "
                    "memory; give --image-size to read them anew in each epoch"
                )
            first, x = files.paths[place], image.new_empty((len(files.paths), *image.shape))
        if image.shape != x.shape[1:]:
            sizes = f"{image.shape[2]}×{image.shape[1]}, but {first} {x.shape[3]}×{x.shape[2]}"
            raise LabError(f"{files.paths[place]}: has {sizes}; give --image-size to bring all to one size")
        x[len(good)] = image
        good.append(place)
    if x is None:
        raise LabError(damaged[0])
    return x[: len(good)], files.labels[good], damaged


def _all(paths: Sequence[str], channels: int, workers: int) -> Iterator[Tensor | LabError]:
    """The pixels of each image, or what is wrong with it, in order."""

    def one(path: str) -> Tensor | LabError:
        try:
            return pixels(decoded(path, channels))
        except LabError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow lets others work while it decodes
        for start in range(0, len(paths), AT_ONCE):
            yield from pool.map(one, paths[start : start + AT_ONCE])


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (channels, 1, 1) of each channel over all pixels, of 0 … 1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    found = []
    for channel in x.unbind(1):
        share = channel.flatten().bincount(minlength=256) / channel.numel()
        mean = (share * levels).sum()
        deviation = (share * (levels - mean) ** 2).sum().sqrt()
        found.append((float(mean), float(deviation) or 1.0))  # one colour everywhere: leave it as it is
    mean, std = torch.tensor(found).T
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
