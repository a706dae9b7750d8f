"""Masks: packed bits, counts, overlap, table, and the choice of the largest, against hand-computed values."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tombola import Masks
from tombola.masks import check_same_layout, largest, pack, permutation, unpack

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def bits(draw: st.DrawFn) -> Tensor:
    shape = draw(shapes)
    count = int(np.prod(shape))
    return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool).view(shape)


def tensor(*rows: str) -> Tensor:
    """Rows of 0 and 1."""
    return torch.tensor([[bit == "1" for bit in row] for row in rows])


ONE = Masks({"a": tensor("110", "000"), "b": tensor("1")})
OTHER = Masks({"a": tensor("101", "100"), "b": tensor("0")})


# ---- a read-only mapping


def test_a_mapping_in_the_given_order() -> None:
    masks = Masks({"z": tensor("1"), "a": tensor("0")})
    assert list(masks) == ["z", "a"]
    assert len(masks) == 2
    assert "a" in masks
    assert "b" not in masks
    assert torch.equal(masks["z"], tensor("1"))
    with pytest.raises(KeyError, match=r"no mask for 'b'; there are masks for z, a"):
        masks["b"]
    with pytest.raises(TypeError):
        masks["z"] = tensor("0")  # type: ignore[index]


def test_later_changes_of_the_mapping_do_not_reach_it() -> None:
    given_ = {"a": tensor("1")}
    masks = Masks(given_)
    given_["b"] = tensor("0")
    assert list(masks) == ["a"]


def test_equal_when_names_shapes_and_bits_are() -> None:
    assert Masks(dict(ONE)) == ONE
    assert ONE != OTHER
    assert Masks({"a": ONE["a"]}) != ONE
    assert Masks({"a": ONE["a"].view(3, 2), "b": ONE["b"]}) != ONE
    assert Masks({"a": ONE["a"], "c": ONE["b"]}) != ONE
    assert ONE != {"a": 1}
    with pytest.raises(TypeError, match="unhashable"):
        hash(ONE)


def test_copies_are_equal() -> None:
    for twin in (copy.deepcopy(ONE), pickle.loads(pickle.dumps(ONE)), ONE.to("cpu")):
        assert isinstance(twin, Masks)
        assert twin == ONE
    assert not Masks({"a": torch.ones(2, requires_grad=True) > 0})["a"].requires_grad


# ---- counts


def test_counts_by_hand() -> None:
    masks = Masks({"a": tensor("110", "000"), "dead": tensor("00", "00"), "one": torch.tensor(True)})
    assert masks.counts() == {"a": 2, "dead": 0, "one": 1}
    assert masks.sizes() == {"a": 6, "dead": 4, "one": 1}
    assert (masks.kept, masks.total) == (3, 11)
    assert masks.density == 3 / 11
    assert masks.dead() == ["dead"]
    assert ONE.dead() == []
    assert repr(masks) == "Masks(3 layers, 3 of 11 weights kept, density 0.2727)"


def test_counts_of_a_layer_without_weights() -> None:
    empty = Masks({"none": torch.ones(0, 3, dtype=torch.bool)})
    assert (empty.kept, empty.total, empty.density) == (0, 0, 0.0)
    assert empty.dead() == ["none"]
    assert "0.0000" in empty.table()
    assert empty.overlap(empty) == 0.0


@given(st.lists(bits(), min_size=1, max_size=4))
def test_counts_are_those_of_python(layers: list[Tensor]) -> None:
    masks = Masks({str(index): layer for index, layer in enumerate(layers)})
    lists = [layer.flatten().tolist() for layer in layers]
    assert list(masks.counts().values()) == [sum(layer) for layer in lists]
    assert masks.total == sum(map(len, lists))
    assert masks.dead() == [str(index) for index, layer in enumerate(lists) if not any(layer)]
    assert masks.overlap(masks) == (1.0 if masks.kept else 0.0)


def test_a_count_beyond_what_float32_can_count() -> None:
    kept = 2**24 + 1
    mask = torch.zeros(kept + 9, dtype=torch.bool)
    mask[:kept] = True
    assert Masks({"w": mask}).kept == kept


def test_overlap_by_hand() -> None:
    assert ONE.overlap(OTHER) == 1 / 5  # both keep a[0, 0]; either keeps four of a and one of b
    assert OTHER.overlap(ONE) == 1 / 5
    assert ONE.overlap(ONE) == 1.0
    with pytest.raises(ValueError, match="only one of the two has 'b'"):
        ONE.overlap(Masks({"a": ONE["a"]}))
    with pytest.raises(ValueError, match=r"'a' has shape \(2, 3\) in one and \(3, 2\)"):
        ONE.overlap(Masks({"a": ONE["a"].view(3, 2), "b": ONE["b"]}))
    with pytest.raises(ValueError, match="'b'"):
        check_same_layout({"a": ONE["a"]}, ONE)


def test_table() -> None:
    masks = Masks({"body.weight": torch.ones(40, 30, dtype=torch.bool), "head": tensor("10")})
    assert masks.table().splitlines() == [
        "body.weight  40×30         1,200 of        1,200    1.0000",
        "head           1×2             1 of            2    0.5000",
        "total                      1,201 of        1,202    0.9992",
    ]


# ---- packed bits


def test_packed_by_hand() -> None:
    mask = tensor("10110", "00001")  # 10110000 01······
    assert pack(mask).tolist() == [0b10110000, 0b01000000]
    assert torch.equal(unpack(torch.tensor([0b10110000, 0b01000000], dtype=torch.uint8), (2, 5)), mask)


@given(bits())
def test_packing_and_unpacking_gives_the_same(mask: Tensor) -> None:
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    again = unpack(packed, tuple(mask.shape))
    assert again.dtype == torch.bool
    assert torch.equal(again, mask)


def test_the_order_of_bits_is_that_of_indices_whatever_the_memory_layout() -> None:
    mask = torch.rand(3, 4, 5, 2) < 0.5
    for laid_out in (
        mask.contiguous(memory_format=torch.channels_last),
        mask.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        assert not laid_out.is_contiguous()
        assert torch.equal(pack(laid_out), pack(mask))
        assert Masks({"w": laid_out}).digest() == Masks({"w": mask}).digest()


@pytest.mark.parametrize(
    ("packed", "shape"),
    [
        (torch.zeros(2).byte(), (3, 3, 2)),
        (torch.zeros(2).byte(), (8,)),
        (torch.zeros(0).byte(), ()),
        (torch.zeros(1, 1).byte(), (8,)),
        (torch.zeros(1), (8,)),
        (torch.zeros(1).byte(), (2**40, 2**40)),
        (torch.tensor([0b00000001]).byte(), (7,)),
    ],
    ids=["few", "many", "none", "matrix", "floats", "huge", "bits behind the end"],
)
def test_bytes_that_do_not_fit_a_shape(packed: Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        unpack(packed, shape)


def test_the_digest_tells_names_shapes_and_bits_apart() -> None:
    different = [
        ONE,
        OTHER,
        Masks({"a": ONE["a"]}),
        Masks({"a": ONE["a"].view(3, 2), "b": ONE["b"]}),
        Masks({"a": ONE["a"], "c": ONE["b"]}),
    ]
    assert len({masks.digest() for masks in different}) == len(different)
    assert Masks({"b": ONE["b"], "a": ONE["a"]}).digest() == ONE.digest()


# ---- shuffled


def test_shuffled_keeps_the_counts_of_each_layer() -> None:
    masks = Masks({"a": torch.arange(600).view(20, 30) < 150, "b": torch.arange(40) < 1, "c": torch.zeros(3).bool()})
    before = torch.get_rng_state()
    one, again, other = (masks.shuffled(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == again
    assert one != other
    for shuffled in (one, other):
        assert shuffled.counts() == masks.counts()
        assert {name: mask.shape for name, mask in shuffled.items()} == {name: m.shape for name, m in masks.items()}
        # of 150 in 600 places about a quarter fall on an old one
        assert 20 < int((shuffled["a"] & masks["a"]).sum()) < 60


def test_a_permutation_is_that_of_the_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(permutation(torch.zeros(2, 3), generator), expected)


# ---- the largest


def test_largest_by_hand() -> None:
    values = torch.tensor([[3.0, -1.0, 2.0], [2.0, 2.0, -torch.inf]])
    kept = [
        ["000", "000"],
        ["100", "000"],
        ["101", "000"],
        ["101", "100"],
        ["101", "110"],
        ["111", "110"],
        ["111", "111"],
    ]
    for keep, rows in enumerate(kept):
        assert torch.equal(largest(values, keep), tensor(*rows)), keep


@given(st.lists(st.integers(-3, 3), max_size=12), st.data())
def test_largest_is_the_head_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda index: -values[index])  # Python's sort is stable
    expected = [index in order[:keep] for index in range(len(values))]
    for dtype in (torch.float32, torch.bfloat16):
        assert largest(torch.tensor(values, dtype=dtype), keep).tolist() == expected


@pytest.mark.parametrize("keep", [-1, 4])
def test_no_more_than_there_are_can_be_kept(keep: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 3 weights"):
        largest(torch.ones(3), keep)


def test_of_a_large_level_layer_the_first_stay() -> None:
    chosen = largest(torch.zeros(100, 100), 2345)
    assert torch.equal(chosen.flatten(), torch.arange(10000) < 2345)
