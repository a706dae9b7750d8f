"""Ticket files that are cut, flipped, foreign or hostile, and processes that are killed while they save one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from table import half
from zoo import NETS

from tombola import Masks, Ticket
from tombola.digest import digest
from tombola.ticket import FORMAT, model_tensors

MARK = "executed"  # what a hostile file would make, if anything in it ran


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    path = tmp_path_factory.mktemp("sound") / "ticket"
    model = NETS["conv"].model()
    Ticket(half(model), model_tensors(model), {"seed": 1, "layers": {"0.weight": 0.5}}).save(path)
    return path.read_bytes()


def refuses(path: Path) -> str:
    """That loading gives one clear line that names the file."""
    with pytest.raises(ValueError, match="cannot be read as a ticket") as caught:
        Ticket.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("part", range(50))
def test_cut_short(part: int, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(content[: len(content) * part // 50])
    refuses(path)


def test_cut_by_one_byte_and_longer_by_one(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    for wrong in (content[:-1], content + b"\0", b"\0" + content, content * 2):
        path.write_bytes(wrong)
        refuses(path)


def test_every_flipped_bit_of_the_header_and_many_behind_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    header = 8 + int.from_bytes(content[:8], "little")
    bits = [*range(8 * 8), *range(8 * 8, 8 * header, 9), *range(8 * header, 8 * len(content), 43)]
    for bit in bits:
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        refuses(path)


@settings(max_examples=80)
@given(st.binary(max_size=200))
def test_noise(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(noise)
    refuses(path)


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb(path.parent / MARK)))


FOREIGN: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a ticket\n" * 20),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / MARK))),
    "torch": lambda path: torch.save({"start/w": Bomb(path.parent / MARK)}, path),
    "torch, as before 1.6": lambda path: torch.save(
        {"start/w": Bomb(path.parent / MARK)}, path, _use_new_zipfile_serialization=False
    ),
    "zip": zipped,
    "numpy": lambda path: np.save(path.open("wb"), np.array([Bomb(path.parent / MARK)], dtype=object)),
    "safetensors of someone else": lambda path: save_file({"w": torch.ones(2)}, path),
    "safetensors of another format": lambda path: save_file({"w": torch.ones(2)}, path, {"format": "pt"}),
    "safetensors without a checksum": lambda path: save_file({"w": torch.ones(2)}, path, {"format": FORMAT}),
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_foreign_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    FOREIGN[name](path)
    refuses(path)
    assert not (tmp_path / MARK).exists()


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "no folder" / "missing", str(tmp_path / "missing")):
        with pytest.raises(FileNotFoundError, match="missing"):
            Ticket.load(path)


def test_a_file_that_may_not_be_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(content)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refuses(path)


# ---- headers that lie


def headed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ABOUT = {"format": FORMAT, "shapes": "{}", "provenance": "{}", "sha256": ""}
HEADERS: dict[str, bytes] = {
    "longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "longest": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "no mapping": headed([1, 2]),
    "deep": headed(b"[" * 100_000),
    "twice": headed(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],'
                    b'"data_offsets":[0,1]}}', b"1"),
    "huge shape": headed({"start/w": entry("F32", [2**40, 2**20], 0, 4), "__metadata__": ABOUT}, b"1234"),
    "shape that overflows": headed({"start/w": entry("F32", [2**33] * 3, 0, 4), "__metadata__": ABOUT}, b"1234"),
    "backwards": headed({"start/w": entry("F32", [1], 4, 0), "__metadata__": ABOUT}, b"1234"),
    "behind the end": headed({"start/w": entry("F32", [1], 2**50, 2**50 + 4), "__metadata__": ABOUT}, b"1234"),
    "overlapping": headed(
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4), "__metadata__": ABOUT}, b"1234"
    ),
    "a type of its own": headed({"start/w": entry("F99", [1], 0, 4), "__metadata__": ABOUT}, b"1234"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(HEADERS[name])
    refuses(path)


# ---- files with a right checksum over wrong content


def forged(tensors: dict[str, torch.Tensor], shapes: str, provenance: str = "{}") -> bytes:
    sha256 = digest(tensors, [shapes, provenance])
    return save(tensors, {"format": FORMAT, "shapes": shapes, "provenance": provenance, "sha256": sha256})


def u8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


ONE = {"mask/w": u8(0b10100000), "start/w": torch.ones(2)}
FORGED: dict[str, tuple[bytes, str]] = {
    "no layers": (forged({}, "{}"), "no layer"),
    "layers in a list": (forged(ONE, "[]"), "not a mapping"),
    "shapes that are not JSON": (forged(ONE, "{"), "ticket"),
    "shapes too deep": (forged(ONE, "[" * 100_000), "ticket"),
    "shape of text": (forged(ONE, '{"w": "3"}'), "'w'"),
    "shape of a float": (forged(ONE, '{"w": [3.0]}'), "'w'"),
    "negative shape": (forged(ONE, '{"w": [-3]}'), "'w'"),
    "huge shape": (forged(ONE, '{"w": [1099511627776, 1099511627776]}'), "'w'"),
    "large shape": (forged(ONE, '{"w": [1048576, 1048576]}'), "'mask/w'"),
    "shape beyond any integer": (forged(ONE, '{"w": [' + "9" * 5000 + "]}"), "ticket"),
    "huge and empty": (
        forged({"mask/w": u8(), "start/w": torch.ones(0)}, '{"w": [0, 99999999999999999999, 99999999999]}'),
        "'w'",
    ),
    "empty beyond int64": (
        forged({"mask/w": u8(), "start/w": torch.ones(0)}, '{"w": [0, 4611686018427387904, 4611686018427387904]}'),
        "'w'",
    ),
    "too many dimensions": (forged({"mask/w": u8(128), "start/w": torch.ones(1)}, f'{{"w": {[1] * 5000}}}'), "'w'"),
    "no mask": (forged({"start/w": torch.ones(2)}, '{"w": [3]}'), "'mask/w'"),
    "no start": (forged({"mask/w": u8(160)}, '{"w": [3]}'), "'start/w'"),
    "another layer": (forged(ONE, '{"v": [3]}'), "'mask/v'"),
    "mask without a shape": (forged(ONE | {"mask/v": u8(1)}, '{"w": [3]}'), "'mask/v'"),
    "short mask": (forged(ONE | {"mask/w": u8()}, '{"w": [3]}'), "'mask/w'"),
    "mask of floats": (forged(ONE | {"mask/w": torch.ones(1)}, '{"w": [3]}'), "'mask/w'"),
    "bits behind the end": (forged(ONE | {"mask/w": u8(0b10100001)}, '{"w": [3]}'), "'mask/w'"),
    "too few values": (forged(ONE | {"start/w": torch.ones(1)}, '{"w": [3]}'), "'start/w'"),
    "values in a matrix": (forged(ONE | {"start/w": torch.ones(1, 2)}, '{"w": [3]}'), "'start/w'"),
    "NaN": (forged(ONE | {"start/w": torch.tensor([1.0, torch.nan])}, '{"w": [3]}'), "'w'"),
    "infinity elsewhere": (forged(ONE | {"start/b": torch.tensor(torch.inf)}, '{"w": [3]}'), "'b'"),
    "entry of no kind": (forged(ONE | {"w": torch.ones(1)}, '{"w": [3]}'), "'w'"),
    "provenance in a list": (forged(ONE, '{"w": [3]}', "[1]"), "provenance"),
    "provenance that is not JSON": (forged(ONE, '{"w": [3]}', "{'a': 1}"), "ticket"),
}


@pytest.mark.parametrize("name", FORGED)
def test_wrong_content_under_a_right_checksum(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(FORGED[name][0])
    assert FORGED[name][1] in refuses(path)


def test_the_forger_can_write_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(forged(ONE, '{"w": [3]}'))
    ticket = Ticket.load(path)
    assert ticket.start["w"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits are Linux's")
def test_no_lie_makes_it_allocate_much(tmp_path: Path) -> None:
    """Within 1 GiB of address space beyond what the process has, every lie gives its message."""
    lies = {**HEADERS, **{f"forged {name}": wrong for name, (wrong, _) in FORGED.items()}}
    script = tmp_path / "limited.py"
    script.write_text(
        textwrap.dedent(
            """
            import resource, sys
            from tombola import Ticket
            have = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (have + 2**30, have + 2**30))
            for path in sys.argv[1:]:
                try:
                    Ticket.load(path)
                except ValueError as error:
                    assert path in str(error)
                else:
                    raise SystemExit(path)
            """
        )
    )
    for number, wrong in enumerate(lies.values()):
        (tmp_path / f"lie {number}").write_bytes(wrong)
    paths = sorted(map(str, tmp_path.glob("lie *")))
    subprocess.run([sys.executable, script, *paths], check=True, timeout=120)
    assert len(paths) == len(lies)


# ---- killed while saving


KILLING = """
import os, random, signal, sys, time, torch
from tombola import Masks, Ticket
torch.set_num_threads(1)
path, times = sys.argv[1], int(sys.argv[2])
mask = torch.rand(300, 200, generator=torch.Generator().manual_seed(0)) < 0.5
tickets = [Ticket(Masks({"w": mask}), {"w": torch.full((300, 200), float(n))}, {"n": n}) for n in range(3)]
tickets[0].save(path)
moments, seen = random.Random(0), set()
for _ in range(times):
    child = os.fork()
    if not child:
        while True:
            tickets[1].save(path)
            tickets[2].save(path)
    time.sleep(moments.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    ticket = Ticket.load(path)
    n = ticket.provenance["n"]
    assert ticket.masks == tickets[n].masks
    assert torch.equal(ticket.start["w"], tickets[n].start["w"])
    seen.add(n)
assert {1, 2} <= seen, seen
tickets[0].save(path)
assert Ticket.load(path).provenance == {"n": 0}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("times", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_inside_a_save_the_file_is_the_old_or_the_new_one(times: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLING, tmp_path / "ticket", str(times)]
    subprocess.run(command, check=True, timeout=200)


@pytest.mark.skipif(os.name == "nt", reason="chmod")
def test_a_save_that_fails_leaves_the_old_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    path.mkdir()  # cannot be replaced by a file
    ticket = Ticket(Masks({"w": torch.ones(2, 2).bool()}), {"w": torch.zeros(2, 2)})
    with pytest.raises(OSError, match="ticket"):
        ticket.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ticket"]
