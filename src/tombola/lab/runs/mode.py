"""From inputs to outputs: in which precision, in which order of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from tombola.lab.errors import LabError

Precision: TypeAlias = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a network computes, in training and when it is measured.

    Its parameters stay as they are, float32 and in their usual order, and with them masks, tickets and checkpoints.

    precision: fp32, or bf16 by PyTorch's autocast; outputs are float32 in any case.
    channels_last: images have their channels innermost in memory, and so has what convolutions make of them.
    """

    precision: Precision = "fp32"
    channels_last: bool = False

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        """What ``model`` makes of a batch of inputs."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.precision == "fp32":
            return model(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, torch.bfloat16):
            output: Tensor = model(x)
        return output.float()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise LabError if ``device`` cannot compute in it."""
    if precision == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        if not able:
            raise LabError(f"precision bf16: {torch.cuda.get_device_name(device)} has no bf16 arithmetic; use fp32")
