"""Checkpoint files: what is written is read, and anything else is a clear error; nothing in a file ever runs."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import same
from torch import nn

from tombola.lab.errors import LabError
from tombola.lab.runs.checkpoint import read_checkpoint, write_checkpoint

MAGIC = b"tombola checkpoint 1\n"


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    plain = {"text": "ß", "none": None, "list": [1, 2.5, (True, "x")], "empty": torch.zeros(0)}
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bits": torch.tensor([1, 2]).byte(),
        **plain,
    }


def sealed(payload: bytes) -> bytes:
    """What a file with this content looks like, its digest included."""
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_checkpoint(path, state())
    found = read_checkpoint(path)
    assert same(found, state())
    write_checkpoint(path, {"another": 1})
    assert read_checkpoint(path) == {"another": 1}
    assert list(tmp_path.iterdir()) == [path]  # and nothing else is left behind
    # magic line, SHA-256 of the rest, and then what torch.save writes
    content = path.read_bytes()
    payload = content[len(MAGIC) + 65 :]
    assert content == sealed(payload)
    assert torch.load(io.BytesIO(payload), weights_only=True) == {"another": 1}


@given(st.data())
def test_damage_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    write_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(LabError, match="delete it to go on without it"):
        read_checkpoint(path)


RAN: list[str] = []


def ran() -> str:
    RAN.append("ran")
    return "ran"


class Bomb:
    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_foreign_and_hostile_files(tmp_path: Path) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "mark"
    bombs = [Bomb(os.system, f"touch {mark}"), Bomb(eval, f"open({str(mark)!r}, 'w')"), Bomb(ran)]
    contents = [
        b"",
        b"\n",
        MAGIC,
        MAGIC[:-3],
        sealed(b""),
        sealed(b"PK\x03\x04"),
        sealed(saved({"a": 1})[:-20]),
        saved(state()),  # a file of torch.save as such
        pickle.dumps(state()["list"]),
        sealed(pickle.dumps({"a": 1})),
        sealed(saved([1, 2])),
        sealed(saved(nn.Linear(2, 2))),
        sealed(saved({"a": Path("x")})),
        *(form for bomb in bombs for form in (pickle.dumps(bomb), saved(bomb), sealed(saved({"a": bomb})))),
        *(sealed(pickle.dumps({"a": bomb}, protocol=protocol)) for bomb in bombs for protocol in (0, 2, 4)),
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(LabError, match="delete it to go on without it") as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not mark.exists()
    assert RAN == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nothing.pt: cannot be read: No such file"):
        read_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(LabError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_checkpoint(path, {"a": 1})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        write_checkpoint(path, {"a": lambda: None})
    with pytest.raises(FileNotFoundError):
        write_checkpoint(tmp_path / "no folder" / "x.pt", {"a": 2})
    assert read_checkpoint(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
