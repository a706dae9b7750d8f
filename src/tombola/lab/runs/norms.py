"""Batch norms that see the whole batch although each rank has a part of it, on any device.

``torch.nn.SyncBatchNorm`` does this on GPUs alone, and is another class of module. Here the model stays as it is: what
calls ``torch.nn.functional.batch_norm`` in training gets this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def has_batch_norm(model: nn.Module) -> bool:
    """Whether one of its modules is a batch norm."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


class WholeBatches(TorchFunctionMode):
    """Inside it, batch norms in training normalise by mean and variance over the parts of all ranks.

    counts: whether what this rank has is a part of the batch, and not something in place of an empty part.
    """

    def __init__(self, *, counts: bool = True) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, or what stands for it here."""
        given: Mapping[str, Any] = kwargs or {}
        if func is F.batch_norm and given.get("training"):
            return self._norm(*args, **given)
        return func(*args, **given)

    def _norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, variance, count = _statistics(x.detach(), counts=self.counts)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1).clamp(min=1))).to(running_var.dtype), momentum)
        output: Tensor = _Normalise.apply(x, weight, bias, mean, variance, count, eps, self.counts)  # type: ignore[no-untyped-call]
        return output


def _exact(x: Tensor) -> Tensor:
    """In the precision in which statistics are computed."""
    return x if x.dtype == torch.float64 else x.float()


def _over(x: Tensor) -> list[int]:
    """The dimensions that are one channel's."""
    return [0, *range(2, x.ndim)]


def _statistics(x: Tensor, *, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of each channel over the parts of all ranks, and how many numbers these are.

    By the formula of Chan, Golub and LeVeque for parts, without the cancellation of a sum of squares.
    """
    variance, mean = torch.var_mean(_exact(x), _over(x), correction=0)
    count = mean.new_tensor([x.numel() / x.shape[1] if counts else 0.0])
    mine = torch.cat([mean, variance, count])
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine)
    means, variances, shares = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
    total = shares.sum()
    shares = shares / total
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0), total


class _Normalise(torch.autograd.Function):
    """(x − mean) / √(variance + eps) · weight + bias, whose gradient knows that mean and variance come from all x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        counts: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, variance, count)
        ctx.eps, ctx.counts = eps, counts
        weight, bias = (None if given is None else given.to(mean.dtype) for given in (weight, bias))
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.ndim - 2)]
        slope = torch.rsqrt(variance + ctx.eps)
        normal = (_exact(x) - mean.view(shape)) * slope.view(shape)
        dy = _exact(gradient)
        d_bias, d_weight = dy.sum(_over(x)), (dy * normal).sum(_over(x))
        sums = torch.stack([d_bias, d_weight])
        distributed.all_reduce(sums)
        if ctx.counts:  # else mean and variance know nothing of this x
            first, second = (sums / count).view(2, *shape)
            dy = dy - first - normal * second
        scale = slope if weight is None else slope * weight
        found = (
            None if given is None else each.to(given.dtype)
            for given, each in ((x, dy * scale.view(shape)), (weight, d_weight), (bias, d_bias))
        )  # fmt: skip
        return *found, None, None, None, None, None
