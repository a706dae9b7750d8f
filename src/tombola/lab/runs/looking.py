"""What is read of a run's folder without working on it: metrics, wall times, and whether it is finished."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tombola.lab.errors import LabError

TIMES = "times.json"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; an incomplete last line, as a run that was killed leaves behind, is passed over.

    Raises:
        LabError: a line before the last is not a record.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise LabError(f"{path}: line {number} is damaged; delete {path.parent} to run it again")
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
    mend = f"delete {folder} to run it again"
    try:
        expected = json.loads(path.read_bytes())["metrics_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LabError(f"{path}: is damaged; {mend}") from None
    if not metrics.exists() or hashlib.sha256(metrics.read_bytes()).hexdigest() != expected:
        raise LabError(f"{metrics}: was changed after the run was finished; {mend}")
    return True


def read_times(folder: Path) -> tuple[str, dict[str, float]]:
    """The device, and the wall time of each result; nothing if there is none yet, or the file is damaged."""
    try:
        found = json.loads((folder / TIMES).read_bytes())
        return str(found["device"]), dict(found["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}
