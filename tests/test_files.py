"""Writing at once or not at all. Processes that are killed while they write: test_ticket_damage.py."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from tombola.files import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_new_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    for content in (b"one", b"", b"three" * 100_000, memoryview(b"four")):
        write_atomically(path, content)
        assert path.read_bytes() == bytes(content)
    assert names(tmp_path) == ["a b.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="file modes")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_mode_is_that_of_a_file_that_is_simply_opened(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "mine", b"1")
        (tmp_path / "plain").write_bytes(b"1")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("mine", "plain")}
    assert modes == {0o666 & ~umask}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", b"1")
    assert names(tmp_path) == []


def test_where_folders_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, or with a folder that may be written to and not read."""
    opened = os.open

    def refusing(path: str | os.PathLike[str], *args: int, **kwargs: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    write_atomically(tmp_path / "file", b"1")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert names(tmp_path) == ["file"]


def test_what_cannot_be_written_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"1")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits")
def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "file"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_reader_sees_one_content_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([65 + number]) * 50_000 for number in range(3)}
    write_atomically(path, min(contents))
    done = threading.Event()

    def write(content: bytes) -> None:
        while not done.is_set():
            write_atomically(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        seen = [path.read_bytes() for _ in range(300)]
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert set(seen) <= contents
    assert names(tmp_path) == ["file"]
