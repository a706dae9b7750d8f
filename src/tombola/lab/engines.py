"""One network in several engines, each in a process of its own, timed in turns.

Engines have thread pools of their own, which spin against each other in one process. So each runs alone in its process,
and only one at a time works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Speed:
    """One engine: median milliseconds for one batch, the median over turns of its ratio to the reference's (above 1:
    the reference is faster), and the largest difference of an output from the reference's, relative to the largest
    output. ``missing`` says why there is nothing of it."""

    engine: str
    milliseconds: float = float("nan")
    ratio: float = float("nan")
    difference: float = float("nan")
    missing: str = ""


def _eager(model: nn.Module, x: Tensor) -> Run:
    return model


def _channels_last(model: nn.Module, x: Tensor) -> Run:
    last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    form = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return lambda x: last(x.contiguous(memory_format=form))


def _bf16(model: nn.Module, x: Tensor) -> Run:
    low = _channels_last(model.bfloat16(), x)
    return lambda x: low(x.bfloat16() if x.is_floating_point() else x).float()


def _compiled(model: nn.Module, x: Tensor) -> Run:
    from torch._inductor import config

    config.freezing = True  # folds norms and packs weights, as one would for inference
    return torch.compile(model)


def _onnx_runtime(model: nn.Module, x: Tensor) -> Run:
    import logging
    import tempfile

    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that nobody asked for
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(model, (x,), path, input_names=["x"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


DENSE: Mapping[str, Callable[[nn.Module, Tensor], Run]] = {
    "PyTorch": _eager,
    "PyTorch, channels_last": _channels_last,
    "torch.compile, frozen": _compiled,
    "ONNX Runtime": _onnx_runtime,
    "PyTorch, bfloat16": _bf16,
}
"""What can run the dense model. The last is less exact."""


def compare(
    make: Callable[[], nn.Module],
    dense: Callable[[], nn.Module],
    x: Tensor,
    *,
    threads: int,
    turns: int = 15,
    seconds: float = 0.2,
    engines: Sequence[str] = tuple(DENSE),
    tell: Callable[[str], None] = lambda text: None,
) -> list[Speed]:
    """The model of ``make``, called "tombola", beside that of ``dense`` in other engines.

    Args:
        make: gives the model; can be pickled, as it is called in another process.
        dense: gives the same network as a plain model.
        x: one batch.
        threads: of each engine.
        turns: how often each engine is timed.
        seconds: about how long each time.
        engines: which of :data:`DENSE`.
        tell: is given a line for each engine that is ready.
    """
    with _started(make, dense, x, threads, engines) as started:
        speeds: dict[str, Speed] = {}
        ready: dict[str, tuple[Connection, Tensor]] = {}
        for name, connection in started.items():
            answer = _answer(connection)
            if isinstance(answer, Tensor):
                ready[name] = (connection, answer)
                tell(f"{name}: ready")
            else:
                speeds[name] = Speed(name, missing=answer)
                tell(f"{name}: {answer}")
        taken: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(turns):
            for name, (connection, _output) in ready.items():
                connection.send(seconds)
                taken[name].append(connection.recv())
    if "tombola" not in ready:
        return list(speeds.values())
    reference, wanted = taken["tombola"], ready["tombola"][1]
    for name, times in taken.items():
        ratio = statistics.median(one / other for one, other in zip(times, reference, strict=True))
        difference = float((ready[name][1] - wanted).abs().max() / wanted.abs().max())
        speeds[name] = Speed(name, statistics.median(times), ratio, difference)
    return [speeds[name] for name in ("tombola", *engines) if name in speeds]


@contextmanager
def _started(
    make: Callable[[], nn.Module], dense: Callable[[], nn.Module], x: Tensor, threads: int, engines: Sequence[str]
) -> Iterator[dict[str, Connection]]:
    """A process for each engine; each answers with its output, or with why there is none, then waits to be timed."""
    context = get_context("spawn")
    processes, ends = [], {}
    try:
        for name in ("tombola", *engines):
            ours, theirs = context.Pipe()
            model = make if name == "tombola" else dense
            process = context.Process(target=_serve, args=(theirs, name, model, x, threads), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ends[name] = ours
            ours.poll(None)  # one at a time also while they get ready
        yield ends
    finally:
        for connection in ends.values():
            connection.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.terminate()


def _answer(connection: Connection) -> Tensor | str:
    try:
        answer = connection.recv()
    except EOFError:
        return "its process ended"
    return answer if isinstance(answer, str) else torch.tensor(answer)


@torch.no_grad()
def _serve(connection: Connection, name: str, make: Callable[[], nn.Module], x: Tensor, threads: int) -> None:
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        model = make().eval()
        run = model if name == "tombola" else DENSE[name](model, x)
        output = run(x)
        for _ in range(3):
            run(x)
    except ImportError as error:
        connection.send(f"not installed ({error.name or error})")
        return
    except Exception as error:  # whatever another engine may raise is a reason not to list it, not to stop
        connection.send(f"cannot run it: {str(error).strip().splitlines()[0] if str(error).strip() else type(error)}")
        return
    connection.send(output.float().tolist())
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        connection.send(_time(run, x, seconds))


def _time(run: Run, x: Tensor, seconds: float) -> float:
    """Median milliseconds of calls that take about so many seconds together."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
