"""The folder of one run: what it is, what was measured, where it stands. A ``kill -9`` at any moment loses nothing.

    config.json          the identity of the run
    metrics.jsonl        one record a line, only ever appended to
    checkpoint-N.pt      the newest state and the one before it; gone when the run is done
    tickets/             one safetensors file a round, or one of the trained sparse network
    times.json           what took how long on which device; of no run the same twice, and so no metric
    done.json            there when the run is finished, with the SHA-256 of its metrics
    lock                 held by the process that works on the run

A checkpoint knows how long metrics.jsonl was when it was made, and what was in it. Continuing cuts off what came later:
it will be measured again, and so is never counted twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from tombola.files import write_atomically
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.runs.checkpoint import read_checkpoint, write_checkpoint
from tombola.lab.runs.records import ticket_name
from tombola.lab.runs.stages import Stage

TIMES = "times.json"


class RunFolder:
    """The folder of the run ``config`` below ``out``, locked while this object is open. Use as a context manager.

    Args:
        out: folder that holds run folders; made if need be.
        config: which run.
        patience: seconds to wait for another process to let go of the folder. Children of one that was killed, those
            of a ``DataLoader`` say, may hold it for some seconds more.

    Raises:
        LabError: another process works on the run, or the folder holds another run or a damaged one.
    """

    def __init__(self, out: Path, config: RunConfig, *, patience: float = 10.0) -> None:
        self.config = config
        self.path = out / config.folder_name
        self.tickets = self.path / "tickets"
        try:
            self.tickets.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"{self.path}: cannot make this folder: {error.strerror}; choose another with --out"
            ) from error
        self._lock = _locked(self.path / "lock", patience)
        self._metrics: IO[bytes] | None = None
        self._number = self._intact = 0  # of the newest checkpoint, and of the newest that is known to be intact
        try:
            self._check_identity()
            for leftover in (*self.path.glob(".*.part"), *self.tickets.glob(".*.part")):
                leftover.unlink()
            self.finished = self._is_finished()
            if self.finished:
                self._delete_checkpoints()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._metrics is not None:
            self._metrics.close()
        self._lock.close()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    def ticket_path(self, round_: int) -> Path:
        """Where the ticket of a round goes."""
        return self.tickets / ticket_name(round_)

    # ---- metrics

    def record(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl. Only after :meth:`resume`.

        Raises:
            ValueError: a value that JSON does not have, NaN for instance.
        """
        assert self._metrics is not None, "resume() first"
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._metrics.write(line)
        self._metrics.flush()
        self._digest.update(line)
        self._length += len(line)

    def took(self, stage: Stage, seconds: float, device: torch.device) -> None:
        """Note the wall time of a result: of its training, and of the search that found its ticket."""
        path, known = self.path / TIMES, dict[str, float]()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one
            known.update(json.loads(path.read_bytes())["seconds"])
        known[stage.key] = round(seconds, 3)
        write_atomically(path, json.dumps({"device": str(device), "seconds": known}).encode() + b"\n")

    # ---- checkpoints

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint: continuing will begin here. The one before it is kept until this one is complete."""
        assert self._metrics is not None, "resume() first"
        os.fsync(self._metrics.fileno())
        self._number += 1
        place = {"length": self._length, "sha256": self._digest.hexdigest()}
        write_checkpoint(
            self._checkpoint(self._number), {"config": self.config.content_hash, "metrics": place, **state}
        )
        self._delete_checkpoints(but=(self._intact, self._number))
        self._intact = self._number

    def resume(self, *, warn: Callable[[str], None], device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that is intact, or None to start from the beginning; metrics are cut back to it.

        Args:
            warn: told of each damaged checkpoint that was passed over.
            device: where the tensors go.

        Raises:
            LabError: no checkpoint is intact although there are some, or metrics.jsonl was changed.
        """
        numbers = self._checkpoints()
        state, damage = None, ""
        for number in reversed(numbers):
            try:
                state, self._intact = self._read(number, device), number
                break
            except LabError as error:
                damage = str(error)
                warn(damage)
        if numbers and state is None:
            raise LabError(f"{damage}. No other checkpoint is intact: delete {self.path} to start this run over")
        self._number = numbers[-1] if numbers else 0
        place = state.pop("metrics") if state else {}
        self._open_metrics(place.get("length", 0), place.get("sha256", hashlib.sha256().hexdigest()))
        return state

    def finish(self) -> None:
        """Mark the run as done; its checkpoints are no longer needed."""
        assert self._metrics is not None, "resume() first"
        os.fsync(self._metrics.fileno())
        done = {"metrics_sha256": self._digest.hexdigest()}
        write_atomically(self.path / "done.json", json.dumps(done).encode() + b"\n")
        self.finished = True
        self._delete_checkpoints()

    # ---- inside

    def _checkpoint(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:06d}.pt"

    def _checkpoints(self) -> list[int]:
        found = (re.fullmatch(r"checkpoint-(\d+)\.pt", path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _delete_checkpoints(self, *, but: Collection[int] = ()) -> None:
        for number in self._checkpoints():
            if number not in but:
                self._checkpoint(number).unlink()

    def _read(self, number: int, device: torch.device | str) -> dict[str, Any]:
        path = self._checkpoint(number)
        state = read_checkpoint(path, device=device)
        if state.pop("config", None) != self.config.content_hash:
            raise LabError(f"{path}: the checkpoint belongs to another run; delete it to go on without it")
        return state

    def _open_metrics(self, length: int, digest: str) -> None:
        path = self.path / "metrics.jsonl"
        self._metrics = path.open("r+b" if path.exists() else "w+b")
        kept = self._metrics.read(length)
        self._digest, self._length = hashlib.sha256(kept), length
        if len(kept) != length or self._digest.hexdigest() != digest:
            raise LabError(f"{path}: was changed since the last checkpoint; delete {self.path} to start this run over")
        self._metrics.truncate(length)
        self._metrics.seek(length)

    def _check_identity(self) -> None:
        path = self.path / "config.json"
        text = self.config.to_json()
        if not path.exists():
            write_atomically(path, text.encode())
            return
        mend = "delete the folder, or choose another with --out"
        try:
            found = RunConfig.read(path)
        except LabError as error:
            raise LabError(f"{error}; {mend}") from None
        if found != RunConfig.from_json(text):
            raise LabError(f"{path}: this folder holds another run than its name says; {mend}")

    def _is_finished(self) -> bool:
        path, metrics = self.path / "done.json", self.path / "metrics.jsonl"
        if not path.exists():
            return False
        mend = f"delete {self.path} to run it again"
        try:
            expected = json.loads(path.read_bytes())["metrics_sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LabError(f"{path}: is damaged; {mend}") from None
        if not metrics.exists() or hashlib.sha256(metrics.read_bytes()).hexdigest() != expected:
            raise LabError(f"{metrics}: was changed after the run was finished; {mend}")
        return True


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


def _locked(path: Path, patience: float) -> IO[str]:
    """The open, locked file ``path``. The lock is the kernel's: it ends with the process, however that ends."""
    file = path.open("a+")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise LabError(f"{path.parent}: {holder} is working on this run; wait for it or stop it") from None
        except OSError as error:  # some network file systems know no locks
            file.close()
            raise LabError(f"{path}: cannot be locked: {error.strerror}; choose another folder with --out") from error
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
