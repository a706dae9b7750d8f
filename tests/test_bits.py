"""Masks at one bit a weight: what they clear, in every layout and number format, and how much they take."""

from __future__ import annotations

from typing import Any

import numba
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tombola import bits, compiled
from tombola.bits import PackedMask, and_unpacked
from tombola.sparse import threads

FORMATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = {"plain": tensor, "with gaps": torch.stack([tensor, tensor], -1)[..., 0]}
    if len(shape) > 1:
        found["transposed"] = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if len(shape) == 4:
        found["channels last"] = tensor.contiguous(memory_format=torch.channels_last)
    return found


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.sampled_from(FORMATS), st.integers(0, 2**20))
def test_clears_what_is_dropped(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    for parameter in layouts(shape, dtype).values():
        packed = PackedMask(mask, parameter)
        assert torch.equal(packed.mask(), mask)
        assert packed.bytes.numel() == -(-mask.numel() // 8)
        for tensor in layouts(shape, dtype).values():  # of the same layout as the parameter, or another
            expected = torch.where(mask, tensor, 0)
            packed.clear(tensor)
            assert torch.equal(tensor, expected)


def test_inf_and_nan_go_too_and_minus_zero_stays() -> None:
    values = torch.tensor([torch.inf, torch.nan, -0.0, 1.0] * 4)
    PackedMask(torch.tensor([False, False, True, True] * 4), values).clear(values)
    assert values.tolist() == [0.0, 0.0, 0.0, 1.0] * 4
    assert torch.signbit(values).tolist() == [False, False, True, False] * 4


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from(FORMATS), st.integers(0, 2**20), st.data()
)
def test_tells_which_are_finite_where_they_are_kept(
    sizes: list[int], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers, expected = [], []
    for size in sizes:
        mask, values = torch.rand(size, generator=draw) < 0.5, torch.randn(size, generator=draw).to(dtype)
        values *= torch.finfo(dtype).max / 8  # the largest numbers are finite
        for place in data.draw(st.lists(st.integers(0, size - 1), max_size=2)):
            values[place] = data.draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
        layers.append((values, PackedMask(mask, values)))
        if bool(values[mask].isfinite().all()):
            expected.append(values)
    assert [id(seen) for seen in bits.clear(layers)] == [id(values) for values in expected]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 100, 128, 1000])
@pytest.mark.parametrize("worth", [2**16, 8, 1])
def test_every_device_does_the_same(dtype: torch.dtype, size: int, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerators run, beside what the CPU runs: as one piece, or in several."""
    monkeypatch.setattr(bits, "_WORTH", worth)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    draw = torch.Generator().manual_seed(size)
    values = torch.randint(-100, 100, (size,), dtype=dtype, generator=draw)
    packed = torch.randint(256, (-(-size // 8),), dtype=torch.uint8, generator=draw)
    here, there = values.clone(), values.clone()
    bits._sweep(dtype, [(here, packed)])
    and_unpacked(there, packed, chunk=16)
    assert torch.equal(here, there)
    kept = [bool(int(packed[place // 8]) >> place % 8 & 1) for place in range(size)]
    assert here.tolist() == [value if keep else 0 for value, keep in zip(values.tolist(), kept, strict=True)]


@pytest.mark.parametrize("change", [lambda w: w.new_ones(1000, 8), lambda w: w.to("meta")])
def test_a_weight_that_was_moved_or_changed(change: Any) -> None:
    """With the same strides, so that nothing but the shape or the device tells."""
    parameter = torch.ones(10, 8)
    packed = PackedMask(torch.zeros(10, 8, dtype=torch.bool), parameter)
    with pytest.raises(RuntimeError, match=r"\(10, 8\) on cpu, is \(10*, 8\) on \w+; detach\(\) before"):
        packed.clear(change(parameter))


def test_memory_that_is_not_there_is_not_touched() -> None:
    """Sharded training frees the storage of a parameter and keeps the parameter."""
    parameter = torch.ones(16)
    packed = PackedMask(torch.zeros(16, dtype=torch.bool), parameter)
    parameter.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage"):
        packed.clear(parameter)


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), OSError(28, "No space left on device")])
def test_where_nothing_can_be_kept_on_disk(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def cfunc(signature: Any, **options: Any) -> Any:
        if "cache" in options:
            raise error
        return real(signature)

    real = numba.cfunc
    monkeypatch.setattr(threads, "cfunc", cfunc)
    monkeypatch.setattr(bits, "_kernel", bits._kernel.__wrapped__)
    values, packed = torch.ones(9), torch.tensor([1, 1], dtype=torch.uint8)
    compiled._tell.cache_clear()
    with pytest.warns(RuntimeWarning, match="compiled code cannot be kept on disk"):
        bits._sweep(values.dtype, [(values, packed)])
    assert values.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1]
