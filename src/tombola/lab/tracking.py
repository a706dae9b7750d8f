"""What runs write into their metrics.jsonl, shown in TensorBoard, Weights & Biases (offline) or trackio as well.

A tracker is a view. It is fed in the process that watches the runs, with what is in their records and nothing else, so
it cannot change what they compute. A run that was stopped is shown anew from its first record when it goes on, and so
has no step twice, however it was stopped. Nothing is sent anywhere.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tombola.files import write_atomically
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.events import Event, OnEvent

COMPLETE = "tracked.json"
"""In the folder of the runs: tracker -> run -> the SHA-256 of the metrics that it shows from the first to the last."""


class Tracker(Protocol):
    """Where the numbers of one run go. It is made of the folder of the runs, the run's config and nothing else, and
    forgets what it knew of this run before."""

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Take numbers, by name, of an optimiser step, counted over all stages of the run; steps never go back."""

    def close(self) -> None:
        """There will be no more."""


class TensorBoard:
    """Event files in OUT/tensorboard/RUN, for ``tensorboard --logdir OUT/tensorboard``."""

    def __init__(self, out: Path, config: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = out / "tensorboard" / config.folder_name
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", f"    {config.to_json()}".replace("\n", "\n    "))

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """One scalar each."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """An offline run in OUT/wandb, which ``wandb sync`` sends when you say so. The project is OUT's own name."""

    def __init__(self, out: Path, config: RunConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        name = config.folder_name
        for before in (out / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(before)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=out.resolve().name, id=name, name=config.title, config=json.loads(config.to_json()), dir=str(out),
            mode="offline", reinit="create_new", settings=settings,
        )  # fmt: skip

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """All at one step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class Trackio:
    """A run in trackio's own folder (TRACKIO_DIR), for ``trackio show``. The project is OUT's own name."""

    def __init__(self, out: Path, config: RunConfig) -> None:
        with _silent():
            import trackio

            project, name = out.resolve().name, config.folder_name
            with contextlib.suppress(ValueError):  # there is no such project yet
                for run in list(trackio.Api().runs(project)):
                    if run.name == name:
                        run.delete()
            with _without("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
                # in a context of its own, where no other run is at work: init() would end that one
                self._run = contextvars.Context().run(
                    trackio.init, project, name=name, config=json.loads(config.to_json()), embed=False,
                    auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        """All at one step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is left."""
        with _silent():
            self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, RunConfig], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_tracker(name: str) -> None:
    """Raise LabError unless the library of the tracker is there."""
    try:
        with _silent():
            found = importlib.import_module(name)
    except ImportError as error:
        raise LabError(f"--track {name}: {error}; pip install {name}, or 'tombola[track]' for all trackers") from None
    if name == "trackio" and not hasattr(found, "Api"):
        raise LabError(f"--track trackio: {found.__version__} is too old; pip install 'trackio>=0.20'")


class Tracking:
    """Follows the metrics.jsonl of runs, for several trackers. Use as a context manager.

    Args:
        out: the folder of the runs.
        configs: the runs.
        trackers: names in :data:`TRACKERS`.
        then: is given every event too, and a warning when a tracker fails, which is then left alone.

    Attributes:
        warnings: these warnings.
    """

    def __init__(self, out: Path, configs: Sequence[RunConfig], trackers: Sequence[str], then: OnEvent) -> None:
        self.out, self.then, self.warnings = out, then, list[str]()
        self._configs = {config.folder_name: config for config in configs}
        self._kinds = list(trackers)
        self._points: dict[str, Points] = {}
        self._open: dict[tuple[str, str], Tracker] = {}  # by kind and run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in list(self._points):
            self._close(run)

    def __call__(self, run: str, event: Event) -> None:
        """Take in an event of a run, as ``run_many`` gives them."""
        if self._kinds and event["event"] in ("epoch", "result", "done"):
            self._follow(run, done=event["event"] == "done")
        self.then(run, event)

    def _follow(self, run: str, *, done: bool) -> None:
        if run not in self._points:  # its metrics have been cut back to its checkpoint by now
            self._points[run] = Points(self.out / run / "metrics.jsonl")
            for kind in list(self._kinds):
                if not (done and self._completed().get(kind, {}).get(run) == self._digest(run)):
                    with self._guarded(kind, run):
                        self._open[kind, run] = TRACKERS[kind](self.out, self._configs[run])
        for step, numbers in self._points[run].new():
            for kind, tracker in self._of(run):
                with self._guarded(kind, run):
                    tracker.log(numbers, step=step)
        if done:
            for kind in self._close(run):
                with self._guarded(kind, run):
                    completed = self._completed()
                    completed.setdefault(kind, {})[run] = self._digest(run)
                    write_atomically(self.out / COMPLETE, json.dumps(completed, indent=1).encode() + b"\n")

    def _of(self, run: str) -> list[tuple[str, Tracker]]:
        return [(kind, tracker) for (kind, of), tracker in self._open.items() if of == run]

    def _close(self, run: str) -> list[str]:
        """Close what shows ``run``; the trackers that could."""
        del self._points[run]
        for kind, tracker in self._of(run):
            with self._guarded(kind, run):
                tracker.close()
        closed = [kind for kind, _ in self._of(run)]
        for kind in closed:
            del self._open[kind, run]
        return closed

    @contextmanager
    def _guarded(self, kind: str, run: str) -> Iterator[None]:
        """A tracker that fails must not take the runs with it."""
        try:
            yield
        except Exception as error:  # whatever somebody else's library raises
            self._kinds.remove(kind)
            self._open = {key: tracker for key, tracker in self._open.items() if key[0] != kind}
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            text = f"--track {kind} failed ({reason}); nothing is lost: metrics.jsonl has it all"
            self.warnings.append(text)
            self.then(run, {"event": "warning", "text": text})

    def _completed(self) -> dict[str, dict[str, str]]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.out / COMPLETE).read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def _digest(self, run: str) -> str:
        return str(json.loads((self.out / run / "done.json").read_bytes())["metrics_sha256"])


class Points:
    """What a metrics.jsonl comes to for a tracker: (step, numbers), of what has been added since it was last asked.

    Numbers are named by the part of the run that they belong to: ``train/test_accuracy``, ``search-1/density``,
    ``retrain-1/test_loss``; final ones ``result/…``, ``result-1/…`` and ``result-shuffled-1/…``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._before = self._last = 0  # bytes; steps of the stages before this one; the last step
        self._stage = ""

    def new(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The points of the lines that are complete."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                self._read += len(line)
                record = json.loads(line)
                if record["kind"] in ("epoch", "result"):
                    yield self._point(record)

    def _point(self, record: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
        if record["kind"] == "result":
            return self._last, _numbers(_name("result", record["control"], record["round"]), record, _RESULT)
        stage = _name(record["phase"], record["label"], record["round"])
        if stage != self._stage:
            self._stage, self._before = stage, self._last
        self._last = self._before + record["steps"]
        moved = record.get("moved", {}).values()
        sums = {key: sum(layer[key] for layer in moved) for key in ("dropped", "grown")} if moved else {}
        return self._last, _numbers(stage, {**record, **sums}, _EPOCH)


_EPOCH = (
    "epoch", "lr", "train_loss", "test_loss", "test_accuracy", "hard_test_loss", "hard_test_accuracy", "density",
    "temperature", "undecided", "dropped", "grown",
)  # fmt: skip
_RESULT = ("density", "kept", "test_accuracy", "test_loss", "epochs_total", "arithmetic", "multiply_adds", "bytes")


def _name(what: str, label: str | None, round_: int) -> str:
    return "-".join(str(part) for part in (what, label, round_) if part)


def _numbers(prefix: str, record: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float]:
    return {f"{prefix}/{key}": record[key] for key in keys if record.get(key) is not None}


@contextmanager
def _silent() -> Iterator[None]:
    """Libraries that print what they do, and where their pages are."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Without these variables of the environment, which would have everything sent somewhere."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
