"""Reading the standard folders of CIFAR-10 and CIFAR-100, which their publishers chose to pickle, without trust.

The unpickler below knows no class but its own two stand-ins for a numpy array and its type: a file can describe bytes,
numbers, strings, lists and dicts, and nothing in it is ever run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tombola.lab.errors import LabError

IMAGES = 10_000  # in each file of CIFAR-10
_PIXELS = 3 * 32 * 32
_LARGEST = 10 * 2**10  # bytes an image; a real file has 3,100


@dataclass(frozen=True)
class Form:
    """One of the two data sets in its standard form: where it lies, what its files hold, and their MD5."""

    name: str
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    train_images: int
    labels: bytes
    classes: int


CIFAR10 = Form(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    train_images=IMAGES,
    labels=b"labels",
    classes=10,
)
CIFAR100 = Form(
    name="CIFAR-100",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    train_images=50_000,
    labels=b"fine_labels",
    classes=100,
)
SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"

Labelled = tuple[Tensor, Tensor]
"""Images and their labels."""


def read(folder: Path, form: Form = CIFAR10) -> tuple[Labelled, Labelled, bool]:
    """((train images, labels), (test images, labels), whether these are the publisher's own files).

    Images are uint8 (N, 3, 32, 32) and labels int64 (N,); N is 50,000 and 10,000. ``folder`` is the standard folder of
    the data set or the one that it lies in.

    Raises:
        LabError: a file is missing, truncated, of another kind or size, or holds impossible labels.
    """
    inner = folder / form.folder if (folder / form.folder).is_dir() else folder
    missing = [name for name in (*form.train, *form.test) if not (inner / name).is_file()]
    if missing:
        problem = f"there is no {missing[0]}" if inner.is_dir() else "there is no such folder"
        raise LabError(
            f"{inner}: {problem}; --data-dir must name the unpacked {form.folder} folder of {form.name}, from {SITE}"
        )
    train = [read_batch(inner / name, form, images=form.train_images) for name in form.train]
    test = [read_batch(inner / name, form) for name in form.test]
    original = all(
        hashlib.md5((inner / name).read_bytes(), usedforsecurity=False).hexdigest() == digest
        for name, digest in {**form.train, **form.test}.items()
    )
    return _joined(train), _joined(test), original


def _joined(parts: list[Labelled]) -> Labelled:
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return images, labels


def read_batch(path: Path, form: Form = CIFAR10, *, images: int = IMAGES) -> Labelled:
    """The ``images`` images (N, 3, 32, 32) and labels (N,) of one file.

    Raises:
        LabError: as for :func:`read`.
    """
    mend = f"unpack the archive of {form.name} (python version) again"
    try:
        if path.stat().st_size > _LARGEST * max(images, IMAGES):
            raise LabError(f"{path}: {path.stat().st_size} bytes are too many for a batch of {form.name}; {mend}")
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise LabError(f"{path}: cannot be read: {error.strerror}") from error
    except LabError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise LabError(f"{path}: not a batch of {form.name}, or damaged ({_shown(error)}); {mend}") from None
    if not isinstance(content, dict) or not {b"data", form.labels} <= content.keys():
        raise LabError(f"{path}: has no b'data' and {form.labels!r}, so is no batch of {form.name}; {mend}")
    data, labels = content[b"data"], content[form.labels]
    if not isinstance(data, _Array) or data.shape != (images, _PIXELS) or len(data.content) != images * _PIXELS:
        raise LabError(f"{path}: b'data' is no uint8 array of shape {(images, _PIXELS)}; {mend}")
    if not isinstance(labels, list) or len(labels) != images:
        raise LabError(f"{path}: {form.labels!r} is no list of {images} labels; {mend}")
    if not all(type(label) is int and 0 <= label < form.classes for label in labels):
        raise LabError(f"{path}: a label is not a whole number from 0 to {form.classes - 1}; {mend}")
    pixels = np.frombuffer(data.content, dtype=np.uint8).reshape(images, 3, 32, 32).copy()
    return torch.from_numpy(pixels), torch.tensor(labels)


def _shown(error: Exception) -> str:
    """The message in one short line: a damaged file can put anything into it."""
    text = str(error).encode("ascii", "backslashreplace").decode()
    return (" ".join(text.split()) or type(error).__name__)[:120]


class _Type:
    """Stand-in for ``numpy.dtype``; only one-byte unsigned integers pass."""

    def __init__(self, code: object, *options: object) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of uint8")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment mean nothing to single bytes


class _Array:
    """Stand-in for ``numpy.ndarray``: a shape and bytes."""

    shape: tuple[object, ...] = ()
    content: bytes | bytearray = b""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, tuple() as shape, _Type(), False, bytes() | bytearray() as content):
                self.shape, self.content = shape, content
            case _:
                raise pickle.UnpicklingError("an array that is not C-contiguous uint8")


def _reconstruct(*arguments: object) -> _Array:
    return _Array()


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> _Array:
    """How protocol 5 stores a contiguous array."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order != "C", content))
    return array


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 stores bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("a text in another encoding than latin1")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of CIFAR needs") from None
