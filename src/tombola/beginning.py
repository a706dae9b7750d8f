"""What a method begins with on a model: which parameters it masks, and its state. Part of ``attach``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from tombola.checks import check_parameters
from tombola.dynamic import DynamicState, moving_seed
from tombola.hard import HardState
from tombola.methods.protocol import DynamicMethod, HardMethod, Moment, SoftMethod
from tombola.ranks import Ranks
from tombola.rewire import begin_sparse
from tombola.selection import Maskable
from tombola.soft import SoftState

if TYPE_CHECKING:
    from tombola.attach import Attachment


class Beginning(NamedTuple):
    """The masked parameters, the state, and what writes it into the model and the optimiser."""

    parameters: dict[str, Parameter]
    state: HardState | SoftState
    write: Callable[[], None]


def begin(
    found: Maskable,
    optimizer: Optimizer,
    method: HardMethod | SoftMethod,
    moment: Moment,
    *,
    seed: int,
    ranks: Ranks,
    live: Iterable[Attachment],
) -> Beginning:
    """Check all that can be checked, on all ranks, and change nothing until ``write`` is called.

    Raises:
        ValueError, TypeError: the method does not go with a parameter, or an attachment of ``live`` has it already.
        RuntimeError: ranks differ.
    """
    generator = torch.Generator().manual_seed(seed)
    if found.sparse:
        sparse, masks = begin_sparse(found, optimizer, method, generator, ranks)
        check_parameters(sparse.found, optimizer, live, sparse=sparse.layers)
        ranks.hold_alike(sparse.found, masks)
        if sparse.moves:
            generator.manual_seed(moving_seed(seed))
        sparse.prepare(moment)
        return Beginning(sparse.found, sparse, partial(sparse.hold, masks))
    if isinstance(method, SoftMethod):
        parameters = dict(found)
        check_parameters(parameters, optimizer, live)
        method.temperature(moment)  # so that what is missing for it comes to light before anything changes
        generator = torch.Generator(next(iter(parameters.values())).device).manual_seed(seed)
        ranks.hold_alike(parameters, {})
        soft = SoftState(parameters, optimizer, method, generator)
        return Beginning(parameters, soft, partial(soft.write, moment))
    held = method.start(found, generator=generator)
    parameters = {name: found[name] for name in held}
    check_parameters(parameters, optimizer, live)
    ranks.hold_alike(parameters, held)
    if not isinstance(method, DynamicMethod):
        hard = HardState(parameters, optimizer)
        return Beginning(parameters, hard, partial(hard.hold, held))
    generator.manual_seed(moving_seed(seed))
    dynamic = DynamicState(parameters, optimizer, method, generator)
    dynamic.prepare(moment)
    return Beginning(parameters, dynamic, partial(dynamic.hold, held))
