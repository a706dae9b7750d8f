"""A data set by its name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tombola.lab import cifar
from tombola.lab.data.base import Dataset
from tombola.lab.data.known import cifar10, cifar100, digits
from tombola.lab.data.loaders import Loaders
from tombola.lab.data.tensors import Data
from tombola.lab.data.text import Tokens, text
from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Inputs, Text
from tombola.lab.objects import call, resolve

Kind = TypeVar("Kind", Images, Text)

_CIFAR = {"cifar10": cifar.CIFAR10.folder, "cifar100": cifar.CIFAR100.folder}
DATA = ("digits", "cifar10", "cifar100", "folder/NAME", "text/NAME")


def _warn(said: str) -> None:
    warnings.warn(said, stacklevel=3)


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    inputs: Inputs | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    tell: Callable[[str], None] = _warn,
) -> Dataset:
    """The data set ``name``.

    Args:
        name: one of ``DATA``, or the user's own "module:function". ``folder/NAME`` is the image folder NAME and
            ``text/NAME`` the text NAME.
        data_dir: where the files lie: the folder or file itself, or the folder around it.
        inputs: how images or a text are read; None: as ``Images()`` or ``Text()`` say.
        device: where training will be.
        workers: processes that read images which do not stay in memory; 0: this one does. No number depends on it.
        tell: told of damaged images that were left out; by default a warning.

    A user's function gets ``data_dir`` if it names it, and returns a :class:`Data`, :class:`Loaders` or
    :class:`Tokens`, or the tensors (train_x, train_y, test_x, test_y), in which case the classes are counted.

    Raises:
        LabError: no such data set, its files are missing or damaged, or ``inputs`` is for other data.
    """
    kind, _, rest = name.partition("/")
    if kind == "folder" and rest:
        from tombola.lab.data.folder import image_folder  # needs Pillow

        place = _place(name, rest, data_dir)
        data: Dataset = image_folder(place, _read_as(Images, inputs, name), name=name, workers=workers, tell=tell)
    elif kind == "text" and rest:
        data = text(_place(name, rest, data_dir), _read_as(Text, inputs, name), name=name)
    elif name in ("digits", *_CIFAR):
        images = _read_as(Images, inputs, name)
        if images != Images(cutout=images.cutout):
            raise LabError(f"data {name!r}: size, channels and skip_damaged are for image folders")
        data = replace(_known(name, data_dir), cutout=images.cutout)
    elif ":" in name:
        if inputs is not None:
            raise LabError(f"data {name!r}: how to read data of your own is up to its function")
        data = _users(name, data_dir)
    else:
        raise LabError(f"data {name!r}: there is {', '.join(DATA)}; or give your own as module:function")
    return data.to(torch.device(device))


def _read_as(kind: type[Kind], inputs: Inputs | None, name: str) -> Kind:
    if inputs is None:
        return kind()
    if not isinstance(inputs, kind):
        raise LabError(f"data {name!r} is read as {kind.__name__}, not as {type(inputs).__name__}")
    return inputs


def _known(name: str, data_dir: Path | None) -> Data:
    if name == "digits":
        return digits()
    if data_dir is None:
        raise LabError(f"data {name!r}: say where its {_CIFAR[name]} folder is with --data-dir")
    return (cifar10 if name == "cifar10" else cifar100)(data_dir)


def _place(name: str, rest: str, data_dir: Path | None) -> Path:
    """Where the folder or file ``rest`` is: in ``data_dir``, or that itself."""
    if data_dir is None:
        raise LabError(f"data {name!r}: say where {rest} is with --data-dir")
    inner = data_dir / rest
    if not inner.exists() and data_dir.resolve().name == rest:
        inner = data_dir
    if not inner.exists():
        raise LabError(f"{inner}: there is no such file or folder; --data-dir must name it, or the folder around it")
    return inner


def _users(name: str, data_dir: Path | None) -> Dataset:
    made = call(resolve(name, "data"), name, "data", {"data_dir": data_dir})
    if isinstance(made, (Data, Loaders, Tokens)):
        return made
    if isinstance(made, tuple) and len(made) == 4 and all(isinstance(part, Tensor) for part in made):
        labels = [y for y in made[1::2] if y.numel() and not y.is_floating_point()]
        return Data(*made, classes=max((int(y.max()) + 1 for y in labels), default=1), name=name)
    found = f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
    raise LabError(
        f"data {name!r}: the function returned {found}, not tombola.lab.data.Data, Loaders, "
        "or the four tensors (train_x, train_y, test_x, test_y)"
    )
