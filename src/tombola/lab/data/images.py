"""Image files to pixels, by Pillow: listing the files of a folder, decoding one, and cropping it."""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tombola.lab.errors import LabError

KINDS = (".png", ".jpg", ".jpeg", ".webp")
GREY = ("1", "L", "LA")  # what Pillow calls images without colour, of 8 bits at most
DEEP = ("I", "F")  # and the beginning of what it calls those of more bits, which it cuts off at 255
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random crops: share of the image, width / height
MARGIN = 256 / 224  # the shorter side of the part that is evaluated is this much shorter than the image's
_TRIES = 10
_MEND = "put a good copy in its place or delete it, or leave damaged images out with --skip-damaged"


@dataclass(frozen=True)
class Files:
    """Image files, and the class of each; classes are numbered in the order of their names."""

    paths: Sequence[str]
    labels: Tensor
    classes: tuple[str, ...]


def listed(folder: Path) -> Files:
    """The images ``folder/CLASS/*``, in order of class and name.

    Raises:
        LabError: the folder has no class, or a class has no image.
    """
    classes = class_names(folder)
    if not classes:
        raise LabError(f"{folder}: has no folders, one for each class, with {_kinds()} files")
    paths: list[str] = []
    counts = []
    for name in classes:
        found = image_files(folder / name)
        if not found:
            raise LabError(f"{folder / name}: has no {_kinds()} file; put the images of the class there or delete it")
        paths += found
        counts.append(len(found))
    return Files(paths, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)), classes)


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder`` that are not hidden, in order; none if it is not there."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def image_files(folder: Path) -> list[str]:
    """The images that lie in ``folder`` itself, in order."""
    return sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(KINDS))


def is_grey(path: str) -> bool | None:
    """Whether the image in a file has no colour, by its head alone; None: it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.mode in GREY
    except Exception:  # as in decoded(), which says so
        return None


def decoded(path: str, channels: int = 3) -> Image.Image:
    """The image in a file: red, green and blue, or if ``channels`` is 1 grey.

    Raises:
        LabError: it cannot be read, is damaged, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(DEEP)
            converted = image.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # damaged files fail in as many ways as there are formats
        reason = " ".join((str(error) or type(error).__name__).replace(f"'{path}'", "it").split())[:120]
        raise LabError(f"{path}: not a readable image, or damaged ({reason}); {_MEND}") from None
    if deep:
        raise LabError(f"{path}: has more than 8 bits a channel, which would be cut off at 255; convert it to 8 bits")
    return converted


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside it, Pillow does not warn of odd metadata, which nobody here reads. Not for threads to enter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pixels(image: Image.Image) -> Tensor:
    """uint8 (3, height, width), or (1, height, width) of a grey image."""
    x = torch.from_numpy(np.array(image))
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1).contiguous()


def middle(image: Image.Image, size: int) -> Tensor:
    """The middle of an image at ``size`` × ``size``, 224/256 of its shorter side, for evaluation."""
    side = min(image.size) / MARGIN
    left, top = ((length - side) / 2 for length in image.size)
    return pixels(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def cropped(image: Image.Image, size: int, seed: int) -> Tensor:
    """A crop of random place, size and shape at ``size`` × ``size``, mirrored half of the time, for training.

    As in Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842. Nothing but ``seed`` decides.
    """
    draw = random.Random(seed)
    box = random_box(*image.size, draw)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return pixels(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else crop)


def random_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop; the whole middle if none of :data:`AREA` and :data:`RATIO` fits."""
    for _ in range(_TRIES):
        area = width * height * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, math.floor(height * RATIO[1])))
    h = min(height, max(1, math.floor(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _kinds() -> str:
    *most, last = (kind[1:] for kind in KINDS)
    return f"{', '.join(most)} or {last}"
