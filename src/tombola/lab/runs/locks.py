"""Who works in a folder: a lock that says so, and that holds on one machine and across machines that share the folder.

On one machine the kernel keeps it: it ends with the process, however that ends. Between machines some file systems keep
it too (NFS does) and some do not (Lustre and BeeGFS, as they are often mounted). So the holder also touches the file
every few seconds, and a process of another machine that finds a holder's name in it waits until that has stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tombola.lab.errors import LabError

try:
    import fcntl
except ModuleNotFoundError:
    raise LabError(
        "experiments need the file locks of Linux or macOS, which this system does not have; on Windows run them in WSL"
    ) from None

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""A holder on another machine that has not touched its lock for so long is dead."""


class Lock:
    """The lock ``path``, held until :meth:`close` or the end of the process.

    Args:
        path: a file in the folder that is locked; made if need be, and left behind.
        patience: seconds to wait for a holder on this machine to let go.

    Raises:
        LabError: another process holds it (the message says which one, where and since when), or the file cannot be
            written or locked.
    """

    def __init__(self, path: Path, *, patience: float) -> None:
        self.path = path
        deadline = time.monotonic() + patience
        watched = ("", 0, time.monotonic())  # what the lock of another machine says, its last beat, and seen since when
        while True:
            self._file = _locked(path)
            said = _said(path)
            if self._file is None:
                if time.monotonic() >= deadline:
                    raise _in_use(path, said)
                time.sleep(0.05)
                continue
            if not _elsewhere(said):
                break
            self._file.close()  # the kernel knows nothing of the other machine's lock, or that machine is gone
            beat = path.stat().st_mtime_ns
            if watched[0] == said and watched[1] != beat:
                raise _in_use(path, said)
            if watched[0] != said:
                watched = (said, beat, time.monotonic())
            elif time.monotonic() - watched[2] > SILENCE_SECONDS:
                self._file = _locked(path)
                if self._file is None:
                    raise _in_use(path, _said(path))
                break
            time.sleep(0.2)
        self._write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n{_machine()}\n")
        _beating(self)

    def beat(self) -> None:
        """Tell other machines that this process is alive."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def close(self) -> None:
        """Let go."""
        _beating(self, no_more=True)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._write("")
            self._file.close()
            self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise LabError(f"{self.path}: cannot be written: {error.strerror}; choose another folder with --out") from (
                error
            )


def _locked(path: Path) -> IO[str] | None:
    """The open file, locked by this process; None if another one of this machine holds it."""
    try:
        file = path.open("a+")
    except OSError as error:
        raise LabError(f"{path}: cannot be written: {error.strerror}; choose another folder with --out") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:  # some network file systems know no locks
        file.close()
        raise LabError(f"{path}: cannot be locked: {error.strerror}; choose another folder with --out") from error
    return file


def _said(path: Path) -> str:
    """What its holder, or the last one, wrote into it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _elsewhere(said: str) -> bool:
    """Whether that is a process of another machine. One of this machine is dead if the kernel gave its lock away."""
    _, _, machine = said.strip().partition("\n")
    return machine not in ("", _machine())


def _in_use(path: Path, said: str) -> LabError:
    holder = said.partition("\n")[0].strip() or "another process"
    return LabError(f"{path.parent}: {holder} is working on this run; wait for it or stop it")


def _machine() -> str:
    """What tells this machine, as the kernel's locks know it, from others: containers of one machine are one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_held: set[Lock] = set()
_guard = threading.Lock()
_heart: list[threading.Thread] = []


def _beating(lock: Lock, *, no_more: bool = False) -> None:
    """Begin, or end, to beat for ``lock``: one thread does so for all locks of the process."""
    with _guard:
        if no_more:
            _held.discard(lock)
            return
        _held.add(lock)
        if not (_heart and _heart[0].is_alive()):  # a forked child has none
            _heart[:] = [threading.Thread(target=_beat, daemon=True, name="locks")]
            _heart[0].start()


def _beat() -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        with _guard:
            held = list(_held)
        for lock in held:
            lock.beat()
