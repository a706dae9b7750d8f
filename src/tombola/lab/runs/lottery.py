"""Training once more from the initial weights with the connections that a training ended with: lottery initialisation.

Appendix E of Evci et al., "Rigging the Lottery", arXiv 1911.11134.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tombola.attach import Attachment
from tombola.masks import Masks, pack


@torch.no_grad()
def begin_with(masks: Masks, model: nn.Module, attach: Callable[[], Attachment]) -> Attachment:
    """``attach()`` with these masks instead of the method's own first ones, over the weights that ``model`` has now."""
    start = {name: model.get_parameter(name).detach().clone() for name in masks}
    run = attach()
    state = run.state_dict()
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    state["hard"] |= {"masks": {name: pack(mask) for name, mask in masks.items()}, "shapes": shapes}
    run.load_state_dict(state)
    for name, mask in masks.items():
        model.get_parameter(name).copy_(start[name] * mask)
    return run
