"""Reading finished and unfinished run folders: config.json, metrics.jsonl and the done marker, as plain data.

Reading is strict about content (a damaged file is one clear error that names it) and lenient about progress: a run that
is still going, or was cut off in the middle of a line, counts for as much as it has recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tombola.lab.errors import LabError
from tombola.lab.later import without_later
from tombola.lab.report.epochs import Epoch, read_epoch
from tombola.lab.report.experiments import scale_of
from tombola.lab.report.fields import field as _field
from tombola.lab.report.fields import finite as _finite
from tombola.lab.runs.looking import is_finished, read_metrics, read_times
from tombola.lab.runs.stages import key_of

CONFIG, METRICS = "config.json", "metrics.jsonl"


@dataclass(frozen=True)
class Layer:
    """One masked layer of a ticket: its name, its number of weights and how many of them the ticket keeps."""

    name: str
    size: int
    kept: int


@dataclass(frozen=True)
class Result:
    """One final number: a dense net, one that was trained sparse (round 0), a retrained ticket or a control.

    Accuracies are fractions in [0, 1]; `test_loss` is in nats, per token for texts, of which `token` says what one is;
    `arithmetic` is that of training and search, in epochs of the dense net. `multiply_adds` for one example and `bytes`
    are those of the network, `seconds` the wall time of training and search; None: an older run does not tell.
    `valid_loss` is that on the validation part of a text. `soft_…` and `hard_…` are those of the soft net at the end of
    its round, and of its ticket before retraining. `data` are what the network was trained and tested on, and
    `found_on` those that a transferred ticket was found on; empty: those of the run, and no transfer.
    """

    method: str
    setting: str
    round: int
    control: str | None
    density: float
    kept: int
    maskable: int
    test_accuracy: float
    test_loss: float | None
    token: str
    epochs_search: float
    epochs_total: float
    arithmetic: float | None
    soft_accuracy: float | None
    hard_accuracy: float | None
    undecided: float | None
    dead_layers: tuple[str, ...]
    ticket: str | None
    layers: tuple[Layer, ...]
    multiply_adds: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    valid_loss: float | None = None
    soft_loss: float | None = None
    hard_loss: float | None = None
    data: str = ""
    found_on: str = ""


@dataclass(frozen=True)
class Run:
    """One run folder: who it is (config), what it found (results), what it warned of, and whether it is finished;
    and its epochs on the way.

    `original` is whether its data are the publisher's own files, `original_there` whether those are that its tickets
    were transferred to; None: not known. `scale` is that of the recipe which it was made for, "full" or a smaller one;
    empty if it was for none. `device` is where its wall times were taken.
    """

    folder: Path
    config: Mapping[str, Any]
    data: str
    model: str
    seed: int
    results: tuple[Result, ...]
    warnings: tuple[str, ...]
    finished: bool
    versions: Mapping[str, str]
    original: bool | None = None
    scale: str = ""
    device: str = ""
    epochs: tuple[Epoch, ...] = ()
    original_there: bool | None = None

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """The method's own part of the config (empty for a config that keeps none)."""
        method = self.config.get("method")
        return method if isinstance(method, Mapping) else {}


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Every run folder at or below `folders`, in order of path, each once.

    Raises:
        LabError: a folder that is missing, or has no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise LabError(f"{folder}: no such folder; give a folder that `tombola search` or `tombola train` wrote")
        below = [config.parent for config in sorted(folder.rglob(CONFIG))]
        if not below:
            raise LabError(
                f"{folder}: no {CONFIG} in it or below it, so no run to report; give a folder that "
                "`tombola search` or `tombola train` wrote"
            )
        found.update({path.resolve(): path for path in below})
    return sorted(found.values())


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        LabError: a config or a record that is damaged: the message names file, line and mend.
    """
    config = without_later(_object(folder / CONFIG))  # as older runs have it, so that they group with newer ones
    finished = is_finished(folder)
    results: list[Result] = []
    warnings: list[str] = []
    original: dict[bool, bool] = {}  # of the data that tickets are transferred to, or of the run's own
    epochs: list[Epoch] = []
    device, seconds = read_times(folder)
    # while stages are shared out, those beside the search have records of their own
    files = [folder / METRICS, *(() if finished else sorted(folder.glob(f"parts/*/{METRICS}")))]
    for place, record in chain.from_iterable(map(_records, files)):
        kind = record.get("kind")
        if kind == "result":
            result = _result(record, place)
            key = key_of(result.round, result.control, transferred=bool(result.found_on))
            results.append(replace(result, seconds=seconds.get(key)))
        elif kind == "epoch":
            epochs.append(read_epoch(record, place))
        elif kind == "warning" and record.get("text") not in warnings:
            warnings.append(str(record.get("text")))
        elif kind == "data":
            original[bool(record.get("transferred"))] = _field(record, "original", bool, place)
    return Run(
        folder=folder,
        config=config,
        data=_name(config, "data", folder),
        model=_name(config, "model", folder),
        seed=_field(config, "seed", int, str(folder / CONFIG)),
        results=tuple(results),
        warnings=tuple(warnings),
        finished=finished,
        versions=_versions(folder, results),
        original=original.get(False),
        original_there=original.get(True),
        scale=scale_of(folder),
        device=device,
        epochs=tuple(epochs),
    )


def _object(path: Path) -> dict[str, Any]:
    mend = f"delete {path.parent} and run the same command again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: not readable as JSON ({error}); {mend}") from None
    if not isinstance(value, dict):
        raise LabError(f"{path}: holds {type(value).__name__}, not a JSON object; {mend}")
    return value


def _versions(folder: Path, results: Iterable[Result]) -> Mapping[str, str]:
    """Library versions as the run's first readable ticket tells them; empty where there is none."""
    for ticket in dict.fromkeys(result.ticket for result in results if result.ticket):
        try:
            with safe_open(str(folder / ticket), framework="np") as file:
                versions = json.loads((file.metadata() or {}).get("provenance", "{}")).get("versions")
        except (OSError, SafetensorError, ValueError, AttributeError):
            continue
        if isinstance(versions, dict):
            return {str(name): str(version) for name, version in versions.items()}
    return {}


def _records(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each record with its place, "file:line"."""
    return ((f"{path}:{number}", record) for number, record in enumerate(read_metrics(path), start=1))


def _result(record: Mapping[str, Any], place: str) -> Result:
    def get(key: str, kind: type | tuple[type, ...]) -> Any:
        return _field(record, key, kind, place)

    number, maybe = (int, float), (int, float, type(None))
    text, none = str, type(None)
    for key in ("density", "test_accuracy"):
        value = get(key, number)
        if not 0.0 <= value <= 1.0:
            raise LabError(f"{place}: {key} is {value}, must be in [0, 1]; the file is damaged or foreign")
    return Result(
        method=get("method", text),
        setting=get("setting", text),
        round=get("round", (int, none)) or 0,
        control=get("control", (text, none)),
        density=get("density", number),
        kept=get("kept", int),
        maskable=get("maskable", int),
        test_accuracy=get("test_accuracy", number),
        test_loss=_finite(get("test_loss", maybe)),
        token=str(record.get("token", "")),
        epochs_search=get("epochs_search", number),
        epochs_total=get("epochs_total", number),
        arithmetic=_finite(get("arithmetic", maybe)),
        soft_accuracy=_finite(get("soft_accuracy", maybe)),
        hard_accuracy=_finite(get("hard_accuracy", maybe)),
        undecided=_finite(get("undecided", maybe)),
        dead_layers=tuple(str(name) for name in get("dead_layers", list)),
        ticket=get("ticket", (text, none)),
        layers=tuple(_layer(layer, place) for layer in get("layers", list)),
        multiply_adds=_optional(record, "multiply_adds", place),
        bytes=_optional(record, "bytes", place),
        valid_loss=_finite(_optional(record, "valid_loss", place)),
        soft_loss=_finite(_optional(record, "soft_loss", place)),
        hard_loss=_finite(_optional(record, "hard_loss", place)),
        data=str(record.get("data", "")),
        found_on=str(record.get("found_on", "")),
    )


def _optional(record: Mapping[str, Any], key: str, place: str) -> Any:
    """A number that older runs do not have."""
    return _field(record, key, (int, float, type(None)), place) if key in record else None


def _layer(layer: object, place: str) -> Layer:
    if not isinstance(layer, Mapping):
        raise LabError(f"{place}: an entry of layers is {type(layer).__name__}, must be an object")
    return Layer(
        name=_field(layer, "name", str, place),
        size=_field(layer, "size", int, place),
        kept=_field(layer, "kept", int, place),
    )


def _name(config: Mapping[str, Any], key: str, folder: Path) -> str:
    """The name of the data or the model: a string, or an object that carries it under "name"."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("name")
    if not isinstance(value, str):
        raise LabError(f"{folder / CONFIG}: {key} is {value!r}, must be a name; the file is damaged or foreign")
    return value
