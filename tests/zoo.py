"""Small networks, one for each kind of layer that can carry a mask. ``NETS`` maps a name to its :class:`Net`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """How to build a network, the shape of one input, and the names of the parameters that get a mask by default.

    Networks and batches are made on the CPU, with the same numbers for every ``device`` that they then go to.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    masked: tuple[str, ...]
    tokens: int | None = field(default=None, kw_only=True)  # inputs are integers below it
    device: str = field(default="cpu", kw_only=True)

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().to(self.device)

    def batch(self, step: int, size: int = 8) -> Tensor:
        """The inputs of a training step; the same ones on each call."""
        generator = torch.Generator().manual_seed(1000 + step)
        if self.tokens is not None:
            return torch.randint(self.tokens, (size, *self.shape), generator=generator).to(self.device)
        return torch.randn(size, *self.shape, generator=generator).to(self.device)


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, core: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.core = core
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention; with ``separate`` the keys and values have their own widths and so their own projections."""

    def __init__(self, *, separate: bool) -> None:
        super().__init__()
        self.narrow = separate
        widths = {"kdim": 6, "vdim": 5} if separate else {}
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True, **widths)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        key, value = (x[..., :6], x[..., :5]) if self.narrow else (x, x)
        return self.attend(x, key, value, need_weights=False)[0]  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).tanh())  # type: ignore[no-any-return]


class Language(nn.Module):
    """A linear layer tied to an embedding, which stays dense, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.middle(self.embed(x)).tanh())  # type: ignore[no-any-return]


class TwoHeads(nn.Module):
    """A body with two heads; ``only`` names the head that the output uses, None: both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.left = nn.Linear(8, 3)
        self.right = nn.Linear(8, 3)
        self.only: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        heads = [self.left, self.right] if self.only is None else [getattr(self, self.only)]
        return sum(head(hidden) for head in heads)  # type: ignore[return-value]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def conv() -> nn.Module:
    """With batch norm, whose running statistics are state that training must carry along."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5)
    )


def _two(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Tanh(), second)


_RNN = tuple(f"core.weight_{kind}_l{layer}" for layer in range(2) for kind in ("ih", "hh"))

NETS = {
    "mlp": Net(mlp, (6,), ("0.weight", "2.weight", "4.weight")),
    "conv": Net(conv, (2, 5, 5), ("0.weight", "4.weight")),
    "conv1d": Net(lambda: _two(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 2, 2, groups=2)), (2, 7), ("0.weight", "2.weight")),
    "conv3d": Net(lambda: _two(nn.Conv3d(2, 3, 2), nn.Conv3d(3, 2, 1)), (2, 3, 3, 3), ("0.weight", "2.weight")),
    "transposed1d": Net(
        lambda: _two(nn.ConvTranspose1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 2)), (2, 5), ("0.weight", "2.weight")
    ),
    "transposed2d": Net(
        lambda: _two(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Conv2d(3, 2, 1)), (2, 4, 4), ("0.weight", "2.weight")
    ),
    "transposed3d": Net(
        lambda: _two(nn.ConvTranspose3d(2, 2, 2), nn.Conv3d(2, 1, 1)), (2, 2, 2, 2), ("0.weight", "2.weight")
    ),
    "gru": Net(lambda: Recurrent(nn.GRU(4, 5, num_layers=2, batch_first=True), 5), (3, 4), (*_RNN, "head.weight")),
    "lstm": Net(
        lambda: Recurrent(nn.LSTM(4, 5, proj_size=3, bidirectional=True, batch_first=True), 6),
        (3, 4),
        (
            *(f"core.weight_{kind}_l0{side}" for side in ("", "_reverse") for kind in ("ih", "hh", "hr")),
            "head.weight",
        ),
    ),
    "attention": Net(lambda: Attention(separate=False), (3, 8), ("attend.in_proj_weight", "attend.out_proj.weight")),
    "attention, separate": Net(
        lambda: Attention(separate=True),
        (3, 8),
        (*(f"attend.{kind}_proj_weight" for kind in "qkv"), "attend.out_proj.weight"),
    ),
    "tied": Net(Tied, (6,), ("one.weight",)),
    "tied to an embedding": Net(Language, (4,), ("middle.weight",), tokens=7),
    "two heads": Net(TwoHeads, (6,), ("body.weight", "left.weight", "right.weight")),
}
