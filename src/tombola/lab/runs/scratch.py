"""Folders that vanish with their process. One that is killed cannot see to that, so the next one does it instead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "tombola-scratch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for this process alone; those that killed processes have left behind are removed first.

    The kernel keeps a lock on it, which ends with the process, however that ends.

    Raises:
        OSError: there can be none.
    """
    _remove_abandoned()
    with contextlib.ExitStack() as stack:
        folder = _made(stack)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _made(stack: contextlib.ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            stack.callback(os.close, _locked(folder))
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:  # a file system without locks, where nobody finds it abandoned
            return folder
        if folder.exists():  # else it was found abandoned before it was locked
            return folder


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(os.close, lock := _locked(folder))
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> int:
    """The open folder, locked by this process.

    Raises:
        BlockingIOError: another one has locked it.
        OSError: it is gone, or cannot be opened or locked.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(opened)
        raise
    return opened
