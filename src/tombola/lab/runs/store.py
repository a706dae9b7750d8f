"""The folder of one run: what it is, what was measured, where it stands. A ``kill -9`` at any moment loses nothing.

    config.json          the identity of the run
    metrics.jsonl        one record a line, only ever appended to
    checkpoint-N.pt      the newest state and the one before it; gone when the run is done
    tickets/             one safetensors file a round, or one of the trained sparse network
    times.json           what took how long on which device; of no run the same twice, and so no metric
    done.json            there when the run is finished, with the SHA-256 of its metrics
    lock                 held by the process that works on the run, or that shares its stages out
    parts/               while its stages are shared out: what the rounds have found, and a folder for each retraining
                         and control with metrics, checkpoints and done.json of its own; gone when the run is done

A checkpoint knows how long metrics.jsonl was when it was made, and what was in it. Continuing cuts off what came later:
it will be measured again, and so is never counted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from tombola.files import write_atomically
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.places import made
from tombola.lab.runs.checkpoint import read_checkpoint, write_checkpoint
from tombola.lab.runs.locks import Lock
from tombola.lab.runs.looking import TIMES, is_finished, read_times
from tombola.lab.runs.records import ticket_name
from tombola.lab.runs.stages import Stage

PARTS = "parts"
SEARCHED = "searched.json"


class RunFolder:
    """The folder of the run ``config`` below ``out``, locked while this object is open. Use as a context manager.

    Args:
        out: folder that holds run folders; made if need be, but not the one around it (see ``tombola.lab.places``).
        config: which run.
        stage: None for the whole run. Another process holds the run and shares its stages out, and this is the one to
            be worked on: a round of the search in the run's own records, or one that stands apart in a folder within.
        saved: called whenever a checkpoint or the end of the work is on disk.
        patience: seconds to wait for another process to let go of the folder. Children of one that was killed, those
            of a ``DataLoader`` say, may hold it for some seconds more.

    Raises:
        LabError: another process works on the run, ``out`` cannot be made, or the folder holds another run or a damaged
            one.
    """

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        *,
        stage: Stage | None = None,
        saved: Callable[[], None] = lambda: None,
        patience: float = 10.0,
    ) -> None:
        self.config, self.saved = config, saved
        self.root = out / config.folder_name
        self.path = self.root / PARTS / stage.name if stage is not None and stage.apart else self.root
        self.tickets = self.root / "tickets"
        held = self.root / PARTS if stage is not None and not stage.apart else self.path
        made(out)
        for folder in (self.tickets, held):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LabError(f"{folder}: cannot make this folder: {error.strerror}; choose another with --out") from (
                    error
                )
        self._lock = Lock(held / "lock", patience=patience)
        self._metrics: IO[bytes] | None = None
        self._number = self._intact = 0  # of the newest checkpoint, and of the newest that is known to be intact
        try:
            self._check_identity()
            tickets = () if self.path != self.root else self.tickets.glob(".*.part")
            for leftover in (*self.path.glob(".*.part"), *tickets):
                leftover.unlink()
            self.finished = is_finished(self.path)
            if self.finished:
                self._tidy()
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
        self.rest()
        self._lock.close()

    def rest(self) -> None:
        """Keep the lock alone, so that others write; :meth:`resume` goes on."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # what could not be written has been complained of
                self._metrics.close()
            self._metrics = None

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.root.name

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
        self._append(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def took(self, stage: Stage, seconds: float, device: torch.device | str) -> None:
        """Note the wall time of a result: of its training, and of the search that found its ticket."""
        known = read_times(self.path)[1]
        known[stage.key] = round(seconds, 3)
        times = {"device": str(device), "seconds": known}
        write_atomically(self.path / TIMES, json.dumps(times).encode() + b"\n")

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
        self.saved()

    def resume(self, *, warn: Callable[[str], None], device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that is intact, or None to start from the beginning; metrics are cut back to it.

        Args:
            warn: told of each damaged checkpoint that was passed over.
            device: where the tensors go.

        Raises:
            LabError: no checkpoint is intact although there are some, or metrics.jsonl was changed.
        """
        self.rest()
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
        self._tidy()
        self.saved()

    # ---- stages that are shared out

    def has_part(self, stage: Stage) -> bool:
        """Whether the stage has begun in a folder of its own."""
        return stage.apart and (self.root / PARTS / stage.name).is_dir()

    def has_finished(self, stage: Stage) -> bool:
        """Whether the stage was trained to its end in a folder of its own.

        Raises:
            LabError: that is damaged.
        """
        return stage.apart and is_finished(self.root / PARTS / stage.name)

    def take(self, stage: Stage, told: list[str]) -> tuple[float, str]:
        """Append the records of a stage that was trained in a folder of its own: its seconds, and on which device.

        Args:
            stage: which.
            told: what the run has been warned of so far, which is left out; what is new is added.

        Raises:
            LabError: it is not finished, or damaged.
        """
        part = self.root / PARTS / stage.name
        if not self.has_finished(stage):
            raise LabError(f"{part}: is not finished; run the same again to go on")
        for line in (part / "metrics.jsonl").read_bytes().splitlines(keepends=True):
            record = json.loads(line)
            if record["kind"] == "warning":
                if record["text"] in told:
                    continue
                told.append(record["text"])
            self._append(line)
        device, seconds = read_times(part)
        return seconds.get(stage.key, 0.0), device

    def remember(self, searched: Mapping[str, Any], told: Sequence[str]) -> None:
        """Keep for the stages that stand apart what the rounds so far have found, and what they have warned of."""
        folder = self.root / PARTS
        folder.mkdir(exist_ok=True)
        kept = {"rounds": searched, "told": told}
        write_atomically(folder / SEARCHED, json.dumps(kept, allow_nan=False).encode())

    def remembered(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """What :meth:`remember` kept.

        Raises:
            LabError: nothing, or the file is damaged.
        """
        path = self.root / PARTS / SEARCHED
        try:
            found = json.loads(path.read_bytes())
            searched = {str(round_): dict(record) for round_, record in found["rounds"].items()}
            return searched, [str(text) for text in found["told"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{path}: cannot be read: {error}; run the same again to go on") from error

    # ---- inside

    def _append(self, lines: bytes) -> None:
        assert self._metrics is not None, "resume() first"
        self._metrics.write(lines)
        self._metrics.flush()
        self._digest.update(lines)
        self._length += len(lines)

    def _checkpoint(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:06d}.pt"

    def _checkpoints(self) -> list[int]:
        found = (re.fullmatch(r"checkpoint-(\d+)\.pt", path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _delete_checkpoints(self, *, but: Collection[int] = ()) -> None:
        for number in self._checkpoints():
            if number not in but:
                self._checkpoint(number).unlink()

    def _tidy(self) -> None:
        self._delete_checkpoints()
        if self.path == self.root:
            shutil.rmtree(self.root / PARTS, ignore_errors=True)

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
        path = self.root / "config.json"
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
