"""A ticket's network as files that other programs read. What can be run is run before it is kept, beside PyTorch."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tombola.files import write_atomically
from tombola.lab.errors import LabError

TOLERANCE = 1e-4
"""How far an exported network may be from PyTorch's, relative to the largest output: sums have another order there."""


@dataclass(frozen=True)
class Form:
    """One way to export a network.

    suffix: of the file.
    write: (model in inference mode, a batch for it, file), gives a line on what was checked. May raise ImportError.
    read: how its user reads it.
    run: whether it is traced and checked on the batch, which means nothing to it otherwise.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Path], str]
    read: str
    run: bool = True


def state_dict(model: nn.Module, x: Tensor, path: Path) -> str:
    """The state dict, with zeros where nothing is kept."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    write_atomically(path, file.getbuffer())
    return ""


def safetensors(model: nn.Module, x: Tensor, path: Path) -> str:
    """The same; tied weights, which share memory, under each of their names."""
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    write_atomically(path, to_safetensors(state, {"format": "pt"}))
    return ""


def torch_export(model: nn.Module, x: Tensor, path: Path) -> str:
    """A program of ``torch.export`` for batches of any size."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=_ANY_BATCH), file)
        file.seek(0)
        program = torch.export.load(file).module()
    said = _checked("torch.export", model, program, x)
    write_atomically(path, file.getbuffer())
    return said


def onnx(model: nn.Module, x: Tensor, path: Path) -> str:
    """An ONNX model for batches of any size, with its input "input" and its output "output"."""
    import onnxruntime

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            model, (x,), file, input_names=["input"], output_names=["output"], dynamic_shapes=_ANY_BATCH,
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        content = file.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    said = _checked("ONNX Runtime", model, lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), x)
    write_atomically(path, content)
    return said


FORMS: Mapping[str, Form] = {
    "state-dict": Form(".pt", state_dict, "model.load_state_dict(torch.load(FILE, weights_only=True))", run=False),
    "safetensors": Form(
        ".dense.safetensors", safetensors, "model.load_state_dict(safetensors.torch.load_file(FILE))", run=False
    ),
    "onnx": Form(".onnx", onnx, 'onnxruntime.InferenceSession(FILE).run(None, {"input": x})'),
    "torch-export": Form(".pt2", torch_export, "torch.export.load(FILE).module()"),
}
"""The forms in which the network is dense, with zeros."""


@torch.no_grad()
def write(form: str, model: nn.Module, x: Tensor, path: Path) -> str:
    """Write ``model`` in one of :data:`FORMS`.

    Args:
        form: which.
        model: on the CPU.
        x: a batch of at least two examples, for tracing and checking.
        path: the file.

    Returns:
        What was checked, as a line; "" if nothing needed to be.

    Raises:
        LabError: what it takes is not installed, the model cannot be exported so, it computes something else, or the
            file cannot be written.
    """
    try:
        return FORMS[form].write(model.eval(), x, path)
    except ImportError as error:
        raise LabError(f"--to {form} needs {error.name or error}: pip install 'tombola[bench]'") from error
    except LabError:
        raise
    except OSError as error:
        raise LabError(f"{path}: cannot be written: {error.strerror}; choose another with --output") from error
    except Exception as error:  # whatever the exporters may make of a model that somebody else wrote
        reason = " ".join(str(error).split())[:300]
        raise LabError(f"--to {form}: this model cannot be exported so ({type(error).__name__}: {reason})") from error


_ANY_BATCH = ({0: torch.export.Dim.DYNAMIC},)


def _checked(engine: str, model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Compare on the whole batch, on all of it but one example, and on one."""
    largest = 0.0
    for batch in (x, x[1:], x[:1]):
        wanted = model(batch)
        largest = max(largest, float((run(batch) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)))
    if not largest <= TOLERANCE:
        raise LabError(f"{engine} computes something else than PyTorch: {largest:.1e} of the largest output apart")
    return f"Checked: {engine} gives PyTorch's outputs, at most {largest:.1e} of the largest one apart."


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of what nobody here can change."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
