"""What adapters to other people's loops have in common."""

from __future__ import annotations

import torch

from tombola.attach import Attachment


@torch.no_grad()
def abandon(run: Attachment) -> None:
    """Detach a run that was interrupted, and leave the weights as they are now: maybe those of a checkpoint."""
    before = [parameter.detach().clone() for parameter in run.parameters.values()]
    run.detach()
    for parameter, values in zip(run.parameters.values(), before, strict=True):
        parameter.copy_(values)
