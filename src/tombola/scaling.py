"""Loss scaling under ``torch.amp.GradScaler``. Part of ``attach``."""

from __future__ import annotations

import torch
from torch.optim import Optimizer


@torch.no_grad()
def undo_loss_scale(optimizer: Optimizer) -> None:
    """Unscale all gradients: GradScaler leaves that to fused optimisers, which divide by the scale themselves."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
