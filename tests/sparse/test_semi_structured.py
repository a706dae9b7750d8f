"""2:4 in a file and on a GPU: what fits, what is stored, and that it comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from tombola.digest import digest
from tombola.patterns import NM
from tombola.sparse.semi_structured import compress, expand, load, reasons, save


def two_of_four(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    scores = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    split = NM(2, 4).split(scores)
    kept = torch.zeros_like(split, dtype=torch.bool).scatter_(1, split.topk(2, 1).indices, True)
    return NM(2, 4).join(kept, scores.shape)


def net() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A net of which the second and the fourth layer fit, and all others do not, each for another reason."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 64, 8), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64),
        nn.Linear(64, 32), nn.Linear(32, 10),
    )  # fmt: skip
    masks = {f"{i}.weight": torch.rand_like(model[i].weight) < 0.5 for i in (0, 6, 7)}  # type: ignore[arg-type]
    masks |= {f"{i}.weight": two_of_four(*model[i].weight.shape) for i in (2, 4)}  # type: ignore[arg-type, misc]
    masks["4.weight"][:, :8] = False  # fewer than two of four is fine as well
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    model(torch.randn(16, 1, 8, 8))  # statistics for the norm
    return model.eval(), masks


def test_what_is_stored() -> None:
    """By hand: kept are inputs 1 and 3 of four, then 0 alone, then none, then 2 and 3."""
    weight = torch.tensor([[0.0, 5, 0, 7, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 9]])
    values, positions = compress(weight)
    assert values.tolist() == [[5, 7, 3, 0, 0, 0, 8, 9]]
    assert positions.tolist() == [[0b0100_1101, 0b1110_0100]]
    assert torch.equal(expand(values, positions), weight)
    with pytest.raises(ValueError, match="more than two of four"):
        compress(torch.ones(1, 8))


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 9), st.sampled_from([torch.float16, torch.bfloat16]))
def test_there_and_back(rows: int, columns: int, seed: int, dtype: torch.dtype) -> None:
    """Also by way of what the hardware takes, as PyTorch converts it, which for itself checks that the weights fit."""
    mask = two_of_four(32 * rows, 64 * columns, seed)
    weight = (torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask).to(dtype)
    assert torch.equal(expand(*compress(weight)), weight)
    packed = sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), expand(*compress(weight)))


def test_a_model_in_a_file(tmp_path: Path) -> None:
    model, masks = net()
    path = tmp_path / "net.safetensors"
    said = save(model, masks, path, about={"data": "none"})
    assert said == reasons(model, masks)
    assert [name for name, reason in said.items() if reason is None] == ["2.weight", "4.weight"]
    assert said["0.weight"] == "a Conv2d; PyTorch has semi-structured weights for Linear layers"
    assert said["6.weight"] == "it keeps more than two of four neighbouring inputs"
    assert said["7.weight"] == "10×32 is not a multiple of 32×64"
    stored = load_file(path)
    assert stored["2.weight.values"].shape == (128, 32)
    assert stored["2.weight.positions"].shape == (128, 8)
    assert stored["5.running_mean"].dtype == torch.float16
    assert stored["5.num_batches_tracked"].dtype == torch.int64

    again = load(path, net()[0])
    wanted = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(again(x.half()).float(), model(x), atol=5e-3, rtol=5e-3)
    bf16 = tmp_path / "bf16.safetensors"
    save(model, masks, bf16, dtype=torch.bfloat16)
    assert load(bf16, model)[2].weight.dtype == torch.bfloat16  # type: ignore[index]
    assert model[2].weight.dtype == torch.float32  # which stays as it was


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_weights_are_semi_structured_tensors(tmp_path: Path) -> None:
    model, masks = net()
    save(model, masks, tmp_path / "net.safetensors")
    fast = load(tmp_path / "net.safetensors", model.cuda())
    assert isinstance(fast[2].weight, torch.sparse.SparseSemiStructuredTensor)  # type: ignore[index]
    x = torch.randn(64, 1, 8, 8, device="cuda")
    torch.testing.assert_close(fast(x.half()).float(), model(x), atol=1e-2, rtol=1e-2)


def test_mistakes(tmp_path: Path) -> None:
    model, masks = net()
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match=r"no weight fits 2:4 \(7.weight: 10×32 is not .*--pattern 2:4"):
        save(model, {"7.weight": masks["7.weight"]}, path)
    with pytest.raises(ValueError, match=r"dtype must be torch.float16 or torch.bfloat16, not torch.float32"):
        save(model, masks, path, dtype=torch.float32)
    with pytest.raises(FileNotFoundError):
        load(path, model)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="cannot be read as a semi-structured model"):
        load(path, model)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        load(path, model)
    save(model, masks, path)
    with pytest.raises(ValueError, match=r"does not fit this Linear: .*Missing key"):
        load(path, nn.Linear(2, 2))
    for harm, says in (
        ({"2.weight.positions": torch.zeros(128, 8, dtype=torch.uint8)}, "two values have one place"),
        ({"2.weight.positions": torch.zeros(128, 9, dtype=torch.uint8)}, "do not fit values"),
        ({"2.weight.values": torch.zeros(128, 30)}, "do not fit values"),
    ):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        other = tmp_path / "harmed.safetensors"
        tensors = {**load_file(path), **harm}
        save_file(tensors, other, metadata | {"sha256": digest(tensors, [metadata["content"]])})
        with pytest.raises(ValueError, match=says):
            load(other, model)
