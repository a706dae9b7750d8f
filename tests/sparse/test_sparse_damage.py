"""Files of sparse and semi-structured models that are cut, flipped, old or hostile: refused, or what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from tombola.digest import digest
from tombola.sparse import convert, semi_structured, store


class Kind(NamedTuple):
    """A kind of file: how it is written and read, and where in it a value and a frozen statistic are."""

    write: Callable[[nn.Sequential, Path], object]
    read: Callable[[Path, nn.Sequential], nn.Module]
    values: str
    form: str


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 32)).eval()


MODEL = net()


def sparse_file(model: nn.Sequential, path: Path) -> None:
    masks = {"0.weight": torch.rand(4, 1, 5, 5) < 0.5, "3.weight": torch.rand(32, 64) < 0.05}
    store.save(convert(model, masks, example=torch.randn(2, 1, 8, 8), choose="sparse"), path, about={"a": 1})


def halved_file(model: nn.Sequential, path: Path) -> None:
    semi_structured.save(model, {"3.weight": (torch.arange(64) % 4 < 2).expand(32, 64)}, path, about={"a": 1})


KINDS = {
    "sparse": Kind(sparse_file, store.load, "3.values", store.FORMAT),
    "2:4": Kind(halved_file, semi_structured.load, "3.weight.values", semi_structured.FORMAT),
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    for name, kind in KINDS.items():
        kind.write(net(), folder / name)
    return {name: (folder / name).read_bytes() for name in KINDS}


def refuses(name: str, path: Path) -> str:
    """That loading gives one clear line that names the file."""
    with pytest.raises(ValueError, match=r"cannot be read as a|does not fit this") as caught:
        KINDS[name].read(path, MODEL)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def parts(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    path.write_bytes(content)
    with safe_open(str(path), framework="pt") as file:
        return load(content), file.metadata()


def forged(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A file with a right checksum."""
    return save(tensors, metadata | {"sha256": digest(tensors, [metadata["content"]])})


@pytest.mark.parametrize("name", KINDS)
def test_cut_short_and_longer(name: str, contents: dict[str, bytes], tmp_path: Path) -> None:
    content, path = contents[name], tmp_path / "file"
    for wrong in (*(content[: len(content) * part // 20] for part in range(20)), content[:-1], content + b"\0"):
        path.write_bytes(wrong)
        refuses(name, path)


@pytest.mark.parametrize("name", KINDS)
def test_flipped_bits(name: str, contents: dict[str, bytes], tmp_path: Path) -> None:
    content, path = contents[name], tmp_path / "file"
    header = 8 + int.from_bytes(content[:8], "little")
    bits = [*range(8 * 8), *range(8 * 8, 8 * header, 43), *range(8 * header, 8 * len(content), 397)]
    for bit in bits:
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        refuses(name, path)


@settings(max_examples=40)
@given(st.sampled_from(list(KINDS)), st.binary(max_size=200))
def test_noise(tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(noise)
    refuses(name, path)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_without_a_checksum_as_older_versions_wrote_it(
    name: str, contents: dict[str, bytes], tmp_path: Path
) -> None:
    path, x = tmp_path / "file", torch.randn(2, 1, 8, 8)
    tensors, metadata = parts(contents[name], path)
    kind, dtype = KINDS[name], tensors[KINDS[name].values].dtype
    wanted = kind.read(path, net())(x.to(dtype))
    del metadata["sha256"]
    path.write_bytes(save(tensors, metadata))
    assert torch.equal(kind.read(path, net())(x.to(dtype)), wanted)
    tensors[kind.values].view(-1)[0] = torch.nan
    path.write_bytes(save(tensors, metadata))
    refuses(name, path)


CONTENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list": lambda said: [said],
    "nothing": lambda said: {},
    "about is a number": lambda said: said | {"about": 5},
    "about is a list": lambda said: said | {"about": [["a", 1]]},
    "rows are a number": lambda said: said | {"rows": 5, "weights": 5},
    "rows of numbers": lambda said: said | {"rows": [5], "weights": [5]},
    "rows of another kind": lambda said: said | {"rows": [{"layer": "3"}], "weights": ["7.weight"]},
    "a layer that is none": lambda said: said | {"rows": [row | {"layer": "9"} for row in rows(said)], "dtype": "9"},
    "a choice that is none": lambda said: said | {"rows": [row | {"chosen": "x"} for row in rows(said)], "dtype": []},
    "a time that is none": lambda said: said | {"rows": [row | {"dense_ms": "x"} for row in rows(said)], "dtype": {}},
    "a huge time": lambda said: said | {"dense_ms": 10**400, "dtype": 10**400},
    "another type": lambda said: said | {"chosen_ms": "1", "dtype": "int8"},
}


def rows(said: dict[str, Any]) -> list[dict[str, Any]]:
    return list(said.get("rows", []))


@pytest.mark.parametrize("lie", CONTENTS)
@pytest.mark.parametrize("name", KINDS)
def test_wrong_content_under_a_right_checksum(name: str, lie: str, contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensors, metadata = parts(contents[name], path)
    told = json.dumps(CONTENTS[lie](json.loads(metadata["content"])))
    path.write_bytes(forged(tensors, metadata | {"content": told}))
    refuses(name, path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 5000])
def test_content_that_is_no_json_or_too_deep(name: str, text: str, contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensors, metadata = parts(contents[name], path)
    path.write_bytes(forged(tensors, metadata | {"content": text}))
    refuses(name, path)
    if name == "sparse":
        with pytest.raises(ValueError, match="cannot be read as a sparse model"):
            store.about(path)


@pytest.mark.parametrize("name", KINDS)
def test_numbers_that_are_none_under_a_right_checksum(name: str, contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    for place, number in (
        (KINDS[name].values, torch.inf),
        (KINDS[name].values, torch.nan),
        ("1.running_var", torch.nan),
    ):
        tensors, metadata = parts(contents[name], path)
        tensors[place].view(-1)[-1] = number
        path.write_bytes(forged(tensors, metadata))
        assert "has NaN or infinite values" in refuses(name, path)
    path.write_bytes(forged(*parts(contents[name], path)))
    KINDS[name].read(path, net())  # the forger can write a sound file


@pytest.mark.parametrize("name", KINDS)
def test_what_could_not_be_loaded_is_not_saved(name: str, tmp_path: Path) -> None:
    model, path = net(), tmp_path / "file"
    KINDS[name].write(model, path)
    before = path.read_bytes()
    with torch.no_grad():
        model[3].bias[1] = torch.nan  # type: ignore[operator, index, union-attr]
    with pytest.raises(ValueError, match=r"'3.bias' has NaN or infinite values"):
        KINDS[name].write(model, path)
    assert path.read_bytes() == before


def test_what_a_smaller_type_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0] = 1e5  # type: ignore[operator, index, union-attr]
    with pytest.raises(ValueError, match=r"'0.weight' has NaN or infinite values in torch.float16"):
        halved_file(model, tmp_path / "file")


@pytest.mark.parametrize("name", KINDS)
def test_a_buffer_may_be_infinite(name: str, tmp_path: Path) -> None:
    model = net()
    model.register_buffer("causal", torch.full((2, 2), -torch.inf).triu(1))
    KINDS[name].write(model, tmp_path / "file")
    again = KINDS[name].read(tmp_path / "file", model)
    assert [buffer.tolist() for key, buffer in again.named_buffers() if "causal" in key] in (
        [],
        [[[0, -torch.inf], [0, 0]]],
    )
