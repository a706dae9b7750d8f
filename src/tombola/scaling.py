"""Loss scaling under ``torch.amp.GradScaler``. Part of ``attach``."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from tombola.sharded import local


@torch.no_grad()
def undo_loss_scale(optimizer: Optimizer) -> None:
    """Unscale all gradients: GradScaler leaves that to fused optimisers, which divide by the scale themselves."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradient = local(parameter.grad)
                gradient.div_(local(scale).to(gradient.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
