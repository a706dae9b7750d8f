"""Budgets: from shapes and a density to the exact number of weights that each layer keeps.

Evci et al., "Rigging the Lottery", ICML 2020 (arXiv 1911.11134), section 3 (1); Erdős–Rényi after Mocanu et al. 2018.
A budget is any ``(shapes, density) -> {name: count}``; bind further arguments with ``functools.partial``.

Counts sum to ``round(density · weights)`` exactly. Real-valued shares are rounded down and what is left over goes, one
weight each, to the layers with the largest remainders; of equal ones, to those that come first.

Differs from the authors' code: it rounds each layer down on its own, so that its totals are a few weights short, and it
never compensates layers that are given a density of their own (``uniform(…, compensate=False)`` does the same).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, Sequence[int]]
Budget: TypeAlias = Callable[[Shapes, float], dict[str, int]]


def uniform(
    shapes: Shapes,
    density: float,
    *,
    first_dense: bool = False,
    densities: Mapping[str, float] | None = None,
    compensate: bool = True,
    allow_empty: bool = False,
) -> dict[str, int]:
    """The same density in every layer.

    Args:
        shapes: parameter name -> shape, output dimension first, in the model's order.
        density: kept weights / weights, all layers together.
        first_dense: keep the whole first layer, as the paper does.
        densities: layers with a density of their own.
        compensate: let the other layers make up for those, so that the total is the asked one. False: they keep
            ``density`` each, as the authors' code, and the total is another.
        allow_empty: accept layers that come out with no weight at all; else each keeps one weight per output (fewer
            where not even that many are left), at the cost of the others, with a warning.

    Raises:
        ValueError: the density is not above 0 and at most 1, a name is unknown, or the counts cannot be met.
    """
    own = {**(densities or {}), **(dict.fromkeys(list(shapes)[:1], 1.0) if first_dense else {})}
    return _solve(shapes, density, dict.fromkeys(shapes, 1.0), own, allow_empty, compensate=compensate)


def erdos_renyi(
    shapes: Shapes, density: float, *, densities: Mapping[str, float] | None = None, allow_empty: bool = False
) -> dict[str, int]:
    """Density in proportion to (n_in + n_out)/(n_in·n_out), kernel sizes aside; no layer denser than dense.

    Arguments and errors as for :func:`uniform`.
    """
    share = {name: _sparseness(tuple(shape)[:2]) for name, shape in shapes.items()}
    return _solve(shapes, density, share, densities or {}, allow_empty)


def erk(
    shapes: Shapes, density: float, *, densities: Mapping[str, float] | None = None, allow_empty: bool = False
) -> dict[str, int]:
    """Erdős–Rényi kernel: density in proportion to (n_in + n_out + kernel sizes)/(n_in·n_out·kernel sizes).

    Layers that would be denser than dense are dense, those of equal share together, and the others make up for it.
    Arguments and errors as for :func:`uniform`.
    """
    share = {name: _sparseness(tuple(shape)) for name, shape in shapes.items()}
    return _solve(shapes, density, share, densities or {}, allow_empty)


def global_(shapes: Shapes, density: float) -> dict[str, int]:
    """No budget for single layers: methods that rank weights (magnitude, |g·w|) rank those of all layers together.

    As a function, for methods that start at random, it is what a draw over all weights gives on average: the same
    density everywhere, and no layer is kept from running empty.
    """
    return uniform(shapes, density, allow_empty=True)


def _sparseness(shape: tuple[int, ...]) -> float:
    return sum(shape) / max(math.prod(shape), 1)


def _solve(
    shapes: Shapes,
    density: float,
    share: Mapping[str, float],
    densities: Mapping[str, float],
    allow_empty: bool,
    *,
    compensate: bool = True,
) -> dict[str, int]:
    if not shapes:
        raise ValueError("budget: no layers; pass at least one parameter name with its shape")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, asked in {"all layers together": density, **densities}.items():
        if not 0 < asked <= 1:
            raise ValueError(f"budget: the density of {name} must be above 0 and at most 1, not {asked}")
    if unknown := [name for name in densities if name not in sizes]:
        raise ValueError(f"budget: densities names {unknown[0]!r}; there are {', '.join(sizes)}")
    total = round(density * sum(sizes.values()))
    fixed = {name: round(asked * sizes[name]) for name, asked in densities.items()}
    if not compensate:
        total = sum(fixed.values()) + sum(round(density * sizes[name]) for name in sizes.keys() - fixed.keys())
    counts = _fill(sizes, total, share, fixed)
    empty = [name for name, count in counts.items() if count == 0 and sizes[name] > 0]
    floors: dict[str, int] = {}
    while empty and not allow_empty:
        floors |= {name: min(shapes[name][0], sizes[name]) for name in empty}
        if sum(fixed.values()) + sum(floors.values()) > total:
            floors = dict.fromkeys(floors, 1)
        counts = _fill(sizes, total, share, fixed | floors)
        empty = [name for name, count in counts.items() if count == 0 and sizes[name] > 0]
    if floors:
        kept = ", ".join(f"{name} {count}" for name, count in floors.items())
        warnings.warn(
            f"budget: density {density} would empty {len(floors)} layers; they keep a few weights ({kept}) at the cost "
            "of the others; raise the density, give them one with densities=…, or pass allow_empty=True",
            stacklevel=3,
        )
    return counts


def _fill(sizes: Mapping[str, int], total: int, share: Mapping[str, float], fixed: Mapping[str, int]) -> dict[str, int]:
    """Counts that sum to ``total``: those of ``fixed``, the others in proportion to size·share, none above its size."""
    free = {name: size for name, size in sizes.items() if name not in fixed}
    left = total - sum(fixed.values())
    if not 0 <= left <= sum(free.values()):
        those = ", ".join(f"{name} {count:,} of {sizes[name]:,}" for name, count in fixed.items())
        which = "already take more than that" if left < 0 else f"and all of the others leave {left:,} of them over"
        raise ValueError(
            f"budget: {total:,} of {sum(sizes.values()):,} weights are to be kept, but the layers with counts of their "
            f"own ({those}) {which}; change the density or theirs"
        )
    counts = {**fixed}
    while free:
        factor = left / max(sum(share[name] * size for name, size in free.items()), 1e-300)
        highest = max(share[name] for name in free)
        if factor * highest < 1:
            break
        # layers of equal share are capped together, whatever the rounding of their sums
        capped = [name for name in free if math.isclose(share[name], highest, rel_tol=1e-12)]
        for name in capped:
            counts[name] = free.pop(name)
            left -= counts[name]
    exact = {name: factor * share[name] * size for name, size in free.items()}
    counts |= {name: math.floor(value) for name, value in exact.items()}
    over = total - sum(counts.values())
    remainders = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable: of equal ones, the first
    for name in remainders[:over]:
        counts[name] += 1
    return {name: counts[name] for name in sizes}
