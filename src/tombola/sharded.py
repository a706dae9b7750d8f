"""Parameters that lie over several ranks, as ``fully_shard`` (FSDP2) leaves them: DTensors whose rows are dealt out.

The mask, score and memory of such a parameter are sharded like it. What is elementwise is done on the :func:`local`
part, and sums are DTensor's own; here is what neither can do: draws and selections, which come out bit for bit as in
one process, whatever the number of ranks. No rank ever holds a whole layer for them.

Everything here also takes plain tensors. What talks between ranks must be called on all of them: :func:`whole`,
:func:`greatest`, :func:`largest`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

DRAWN = 2**20  # random numbers that are drawn at a time
DIGIT = 11  # bits of a key that one round of the search settles: 2,048 counts are exchanged


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import; without it nothing can be one
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; a plain tensor itself."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; a plain tensor itself."""
    return tensor.full_tensor().detach() if is_sharded(tensor) else tensor


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """``part`` as this rank's part of something that lies over the ranks as ``tensor`` does."""
    if not is_sharded(tensor):
        return part
    mesh, placements = tensor.device_mesh, tensor.placements
    shape, stride = tensor.shape, torch.empty(tensor.shape, device="meta").stride()
    return type(tensor).from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


def part_of(saved: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of ``saved``, a whole tensor of the shape of ``tensor``, or one that lies as it does.

    Raises:
        ValueError: it lies over the ranks in another way.
    """
    if is_sharded(saved):
        if not is_sharded(tensor) or (saved.device_mesh, saved.placements) != (tensor.device_mesh, tensor.placements):
            here = f"{tensor.placements} of {tensor.device_mesh}" if is_sharded(tensor) else "one process"
            raise ValueError(
                f"it is a shard, {saved.placements} of {saved.device_mesh}, here it belongs to {here}; save with "
                "torch.distributed.checkpoint, which deals out anew, or save state_dict(full=True)"
            )
        return local(saved)
    if not is_sharded(tensor):
        return saved
    begin, end = rows(tensor)
    return saved[begin:end]


def placed(saved: Tensor, tensor: Tensor) -> Tensor:
    """:func:`part_of`, on the device of ``tensor``, as a tensor that lies as ``tensor`` does."""
    return like(part_of(saved, tensor).to(tensor.device), tensor)


def rows(tensor: DTensor) -> tuple[int, int]:
    """The first of the whole tensor's rows that this rank has, and the one behind its last."""
    dim = dealt(tensor)
    if dim is None:
        return 0, tensor.shape[0]
    each = -(-tensor.shape[0] // tensor.device_mesh.size(dim))
    begin = min(each * tensor.device_mesh.get_local_rank(dim), tensor.shape[0])
    return begin, min(begin + each, tensor.shape[0])


def _before(tensor: DTensor) -> int:
    """How many entries of the whole tensor come before the first of this rank."""
    return rows(tensor)[0] * tensor.shape[1:].numel()


def dealt(tensor: DTensor) -> int | None:
    """The dimension of the mesh over which its rows are dealt out; None: every rank has all of them.

    Raises:
        ValueError: it lies over the ranks in a way that is not supported.
    """
    from torch.distributed.tensor import Replicate, Shard

    dims = [dim for dim, placement in enumerate(tensor.placements) if type(placement) is not Replicate]
    if len(dims) > 1 or not all(tensor.placements[dim] == Shard(0) for dim in dims):
        raise ValueError(
            f"it lies over the ranks as {tensor.placements}; only rows can be dealt out, Shard(0), over one dimension "
            "of the mesh, as fully_shard does by default"
        )
    return dims[0] if dims else None


def _group(tensor: DTensor) -> Any:
    dim = dealt(tensor)
    return None if dim is None else tensor.device_mesh.get_group(dim)


# ---- draws


def drawn(tensor: Tensor, generator: torch.Generator, *, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform random numbers of the shape of ``tensor``, from a CPU generator, so that every device sees the same.

    Each rank draws those of all ranks and keeps its own, which takes the time of one process but not its memory.
    """
    if not is_sharded(tensor):
        return torch.rand(tensor.shape, generator=generator, dtype=dtype).to(tensor.device)
    begin, shape = _before(tensor), local(tensor).shape
    _skip(begin, generator, dtype)
    mine = torch.rand(shape, generator=generator, dtype=dtype)
    _skip(tensor.numel() - begin - shape.numel(), generator, dtype)
    return like(mine.to(tensor.device), tensor)


def _skip(count: int, generator: torch.Generator, dtype: torch.dtype | None) -> None:
    for done in range(0, count, DRAWN):
        torch.rand(min(DRAWN, count - done), generator=generator, dtype=dtype)


# ---- selections


@torch.no_grad()
def total(tensor: Tensor) -> Tensor:
    """The sum of the entries, of all ranks, as a plain scalar; ``int(mask.sum())`` would be that of this rank alone."""
    found = local(tensor).sum()
    group = _group(tensor) if is_sharded(tensor) else None
    if group is not None:
        distributed.all_reduce(found, group=group)
    return found


@torch.no_grad()
def greatest(tensor: Tensor) -> Tensor:
    """The greatest entry, of all ranks, as a plain scalar."""
    part = local(tensor)
    found = part.amax() if part.numel() else part.new_full((), -torch.inf)
    group = _group(tensor) if is_sharded(tensor) else None
    if group is not None:
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=group)
    return found


@torch.no_grad()
def every(tensor: Tensor, stride: int, *, begin: int) -> Tensor:
    """Every ``stride``-th entry, in the order of memory, of all ranks; on each rank."""
    part = local(tensor)
    flat = part.as_strided((part.numel(),), (1,))
    if not is_sharded(tensor) or (group := _group(tensor)) is None:
        return flat[begin::stride]
    taken = flat.new_zeros(len(range(begin, tensor.numel(), stride)))
    before = _before(tensor)
    mine = flat[(begin - before) % stride :: stride]
    first = max(0, -(-(before - begin) // stride))
    taken[first : first + mine.numel()] = mine
    distributed.all_reduce(taken, group=group)  # all others have 0 there
    return taken


@torch.no_grad()
def largest(tensors: Sequence[Tensor], keep: int, generator: torch.Generator | None) -> list[Tensor]:
    """Like :func:`tombola.masks.largest` of all tensors one behind the other, without bringing them together.

    A search over counts finds the threshold: the ranks add up how many of their values begin with which bits, eleven
    bits a round, three rounds in single precision. Exact, and what is exchanged does not grow with the tensors.
    """
    group = next(group for tensor in tensors if is_sharded(tensor) and (group := _group(tensor)) is not None)
    size = sum(tensor.numel() for tensor in tensors)
    if not 0 <= keep <= size:
        raise ValueError(f"cannot keep {keep} of {size} weights")
    if keep == 0:
        return [like(torch.zeros_like(local(tensor), dtype=torch.bool), tensor) for tensor in tensors]
    keys = [_ordered(local(tensor)) for tensor in tensors]
    # what every rank has all of is counted by the first one alone
    first = distributed.get_rank(group) == 0
    dealt_out = [is_sharded(tensor) and dealt(tensor) is not None for tensor in tensors]
    counted = [key.flatten() for key, mine in zip(keys, dealt_out, strict=True) if mine or first]
    threshold, missing = _threshold(torch.cat(counted), keep, group)
    level = [key == threshold for key in keys]
    taken = _taken([int(part.sum()) for part in level], dealt_out, missing, group, generator, keys[0].device)
    chosen = []
    for tensor, key, part, mine in zip(tensors, keys, level, taken, strict=True):
        part[part.clone()] = mine.to(part.device)
        chosen.append(like((key > threshold) | part, tensor))
    return chosen


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of floating-point ``values``."""
    values = values.detach() + 0.0  # −0.0 is no less than 0.0
    if values.element_size() < 4:
        values = values.float()
    bits = values.contiguous().view(torch.int64 if values.dtype is torch.float64 else torch.int32)
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _threshold(keys: Tensor, keep: int, group: Any) -> tuple[int, int]:
    """The ``keep``-th largest key of all ranks, and how many of those that equal it are among the ``keep``."""
    bits = 8 * keys.element_size()
    above, found = bits, 0
    while above:
        width = min(DIGIT, above)
        above -= width
        digit = (keys >> above) & ((1 << width) - 1)
        sign = 1 << (width - 1) if above + width == bits else 0  # negative ones come first
        counts = torch.bincount(digit ^ sign, minlength=1 << width)
        distributed.all_reduce(counts, group=group)
        from_top = counts.flip(0).cumsum(0).cpu()
        place = int((from_top < keep).sum())
        keep -= int(from_top[place - 1]) if place else 0
        wanted = ((1 << width) - 1 - place) ^ sign
        keys = keys[digit == wanted]
        found = found << width | wanted
    return (found - (1 << bits) if found >> (bits - 1) else found), keep


def _taken(
    counts: Sequence[int],
    dealt_out: Sequence[bool],
    missing: int,
    group: Any,
    generator: torch.Generator | None,
    device: torch.device,
) -> list[Tensor]:
    """Which of this rank's equal entries are taken, for each tensor: ``missing`` of those of all ranks.

    They stand one behind the other by tensor, and within one by rank.
    """
    mine = torch.tensor(counts, device=device)
    gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, mine, group=group)
    by_rank = torch.stack(gathered).cpu()
    rank, begins, total = distributed.get_rank(group), [], 0
    for index, over_ranks in enumerate(dealt_out):
        begins.append(total + (int(by_rank[:rank, index].sum()) if over_ranks else 0))
        total += int(by_rank[:, index].sum()) if over_ranks else counts[index]
    taken = torch.zeros(total, dtype=torch.bool)
    taken[:missing] = True
    if generator is not None:
        order = torch.randperm(total, generator=generator)
        taken = torch.zeros_like(taken).index_fill_(0, order[:missing], True)
    return [taken[begin : begin + count] for begin, count in zip(begins, counts, strict=True)]
