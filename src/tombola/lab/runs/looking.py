"""What is read of a run's folder without working on it: metrics, wall times, and whether it is finished."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from tombola.lab.errors import LabError

TIMES = "times.json"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, one of each line. An incomplete last one, which a run that goes on or was killed
    has, is passed over.

    Raises:
        LabError: a line before the last is not a record, or the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LabError(f"{path}: not readable ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise LabError(
                f"{path}:{number}: not a JSON record; run the same command again to continue this run, or delete its "
                "folder to start it over"
            )
        records.append(record)
    return records


def is_finished(folder: Path) -> bool:
    """Whether what is in the folder was brought to its end.

    Raises:
        LabError: it was, and has been changed since.
    """
    path, metrics = folder / "done.json", folder / "metrics.jsonl"
    if not path.exists():
        return False
    mend = f"delete {folder} and run the same command again"
    try:
        expected = json.loads(path.read_bytes())["metrics_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LabError(f"{path}: is damaged ({error!r}); {mend}") from None
    if not metrics.exists() or hashlib.sha256(metrics.read_bytes()).hexdigest() != expected:
        raise LabError(f"{metrics}: was changed after the run was finished; {mend}")
    return True


def read_times(folder: Path) -> tuple[str, dict[str, float]]:
    """The device, and the wall time of each result; nothing if there is none yet, or the file is damaged."""
    try:
        found = json.loads((folder / TIMES).read_bytes())
        seconds = {str(key): float(value) for key, value in found["seconds"].items()}
        return str(found["device"]), {key: value for key, value in seconds.items() if math.isfinite(value)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", {}
