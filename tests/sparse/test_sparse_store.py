"""The file of a converted model: the same outputs, nothing executed, and no damage goes unnoticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import tombola
from tombola.digest import digest
from tombola.lab import models
from tombola.sparse import Converted, convert, load, save
from tombola.sparse.store import about


def made(model: nn.Module, *, choose: str = "sparse") -> Converted:
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.2 for n, p in tombola.maskable(model).items()}
    return convert(model, masks, example=torch.randn(4, 3, 16, 16), choose=choose)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_is_the_saved_one(tmp_path: Path, training: bool) -> None:
    model = models.resnet20(width=0.5).train(training)
    fast = made(model)
    save(fast, tmp_path / "net.safetensors", about={"model": "resnet20"})
    torch.manual_seed(5)
    again = load(tmp_path / "net.safetensors", models.resnet20(width=0.5))
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(again(x), fast(x))
    assert again.training is training
    assert again.rows == fast.rows
    assert again.table() == fast.table()
    assert about(tmp_path / "net.safetensors") == {"model": "resnet20"}
    wanted = fast.to_dense().state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in again.to_dense().state_dict().items())


def test_what_was_measured_and_low_precision_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    fast = convert(model, {"0.weight": torch.rand(256, 256) < 0.9}, example=torch.randn(64, 256), bf16=True)
    save(fast, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", model)
    x = torch.randn(8, 256)
    assert torch.equal(again(x), fast(x))
    assert [type(module).__name__ for module in again.net.modules()] == [type(m).__name__ for m in fast.net.modules()]


def test_the_file_follows_the_non_zeros(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    fast = convert(model, {"0.weight": torch.rand(1000, 1000) < 0.01}, example=torch.randn(2, 1000), choose="sparse")
    save(fast, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size < 8.5 * 10_500 + 4 * 1001 + 2000


def test_a_file_that_is_not_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FileNotFoundError):
        load(path, model)
    path.write_bytes(b"not this")
    with pytest.raises(ValueError, match="cannot be read as a sparse model"):
        load(path, model)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        load(path, model)
    save_file({"a": torch.zeros(1)}, path, {"format": "tombola-sparse-1", "content": "[]"})
    with pytest.raises(ValueError, match="its content is incomplete"):
        about(path)


def changed(path: Path, **tensors: torch.Tensor) -> None:
    """Another file, with a right checksum."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(content, path, metadata | {"sha256": digest(content, [metadata["content"]])})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"f0__columns": torch.tensor([0, 9], dtype=torch.int32)}, "f0.columns: a position is outside"),
        ({"f0__columns": torch.tensor([1, 1], dtype=torch.int32)}, "f0.columns: a position occurs twice"),
        ({"f0__columns": torch.tensor([1, 2])}, "f0.columns: must be one-dimensional int32"),
        ({"f0__pointers": torch.tensor([0, 2, 1, 2], dtype=torch.int32)}, "f0.pointers: do not share 2"),
        ({"f0__values": torch.zeros(3)}, "size mismatch"),
    ],
)
def test_damaged_positions_are_refused_by_name(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / "net.safetensors"
    model = nn.Sequential()
    model.add_module("f0", nn.Linear(4, 3))
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1] = mask[0, 2] = True
    save(convert(model, {"f0.weight": mask}, example=torch.randn(2, 4), choose="sparse"), path)
    changed(path, **tensors)
    with pytest.raises(ValueError, match=message):
        load(path, model)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(made(models.resnet20(width=0.5)), path)
    with pytest.raises(ValueError, match="does not fit this _Chain"):
        load(path, models.lenet_300_100())
    with pytest.raises(ValueError, match="does not fit this _ResNet"):
        load(path, models.resnet20(width=0.25))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    fast = made(models.resnet20(width=0.25))
    save(fast, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(fast, path, about={"a": object()})
    with pytest.raises(OSError, match=r".+"):
        save(fast, tmp_path / "missing" / "net.safetensors")
    assert path.read_bytes() == before
    assert json.loads(json.dumps(about(path))) == {}
