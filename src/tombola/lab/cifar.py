"""Reading the standard ``cifar-10-batches-py`` folder, which its publishers chose to pickle, without trusting it.

The unpickler below knows no class but its own two stand-ins for a numpy array and its type: a file can describe bytes,
numbers, strings, lists and dicts, and nothing in it is ever run.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tombola.lab.errors import LabError

FOLDER = "cifar-10-batches-py"
IMAGES = 10_000  # in each of the six files
_PIXELS = 3 * 32 * 32
_LARGEST = 100 * 2**20  # bytes; a real file has 31 million


def read(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((train images, labels), (test images, labels)): uint8 (N, 3, 32, 32) and int64 (N,); N is 50,000 and 10,000.

    ``folder`` is the ``cifar-10-batches-py`` folder or the one that it lies in.

    Raises:
        LabError: a file is missing, truncated, of another kind or size, or holds impossible labels.
    """
    inner = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    missing = [name for name in names if not (inner / name).is_file()]
    if missing:
        problem = f"there is no {missing[0]}" if inner.is_dir() else "there is no such folder"
        raise LabError(f"{inner}: {problem}; --data-dir must name the unpacked {FOLDER} folder of CIFAR-10")
    parts = [read_batch(inner / name) for name in names]
    train_x, train_y = (torch.cat(column) for column in zip(*parts[:-1], strict=True))
    return (train_x, train_y), parts[-1]


def read_batch(path: Path, *, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """The ``images`` images (N, 3, 32, 32) and labels (N,) of one file.

    Raises:
        LabError: as for :func:`read`.
    """
    mend = "unpack the archive of CIFAR-10 (python version) again"
    try:
        if path.stat().st_size > _LARGEST:
            raise LabError(f"{path}: {path.stat().st_size} bytes are too many for a batch of CIFAR-10; {mend}")
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise LabError(f"{path}: cannot be read: {error.strerror}") from error
    except LabError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise LabError(f"{path}: not a batch of CIFAR-10, or damaged ({_shown(error)}); {mend}") from None
    if not isinstance(content, dict) or not {b"data", b"labels"} <= content.keys():
        raise LabError(f"{path}: has no b'data' and b'labels' (CIFAR-100 is another format); {mend}")
    data, labels = content[b"data"], content[b"labels"]
    if not isinstance(data, _Array) or data.shape != (images, _PIXELS) or len(data.content) != images * _PIXELS:
        raise LabError(f"{path}: b'data' is no uint8 array of shape {(images, _PIXELS)}; {mend}")
    if not isinstance(labels, list) or len(labels) != images:
        raise LabError(f"{path}: b'labels' is no list of {images} labels; {mend}")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise LabError(f"{path}: a label is not a whole number from 0 to 9; {mend}")
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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of CIFAR-10 needs") from None
