"""Texts as bytes or characters, to predict each from those before it.

A file is split by position: the first 90 % to train, 5 % to validate, 5 % to test. A folder may hold ``train.txt``,
``valid.txt`` and ``test.txt`` instead. Networks are measured on the validation part whenever they are on the test part:
it is for choosing among settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tombola.lab.data.base import WHOLE, Batch, Part, whole_batches
from tombola.lab.errors import LabError
from tombola.lab.inputs import Text

EVALUATED = 8192  # tokens at a time
PARTS = ("train", "valid", "test")
SHARES = (0.90, 0.95)  # of a file, where validation and test begin


@dataclass(frozen=True)
class Tokens:
    """A text as tensors of tokens on the device.

    train, valid_tokens, test_tokens: (L,) integers in 0 … classes − 1. length: tokens in an example. classes: kinds of
    tokens. vocabulary: what the numbers stand for, if the tokens are characters.

    An example is (length,) tokens, its labels are the (length,) tokens that follow each. An epoch cuts the training
    text into examples at places that its seed decides; floor((L − length) / length / batch_size) batches.
    """

    train: Tensor
    valid_tokens: Tensor
    test_tokens: Tensor
    length: int
    classes: int
    name: str
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        for part, tokens, least in zip(
            PARTS, (self.train, self.valid_tokens, self.test_tokens), (2, 1, 1), strict=True
        ):  # fmt: skip
            wanted = max(least * self.length, self.length + 1)
            if len(tokens) < wanted:
                raise LabError(
                    f"data {self.name!r}: the text is too short, part {part!r} has {len(tokens):,} tokens and needs "
                    f"{wanted:,} for examples of {self.length}; give a longer text, or less with --length"
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.length,)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch: the whole ones.

        Raises:
            LabError: there is not one whole batch.
        """
        return whole_batches(self.name, (len(self.train) - self.length) // self.length, batch_size)

    def epoch(self, seed: int, *, batch_size: int, augment: bool, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches (N, length) of one epoch: examples side by side from a random place on, in random order."""
        if augment:
            raise LabError(f"augment: {self.name} is a text, not images")
        generator = torch.Generator().manual_seed(seed)
        first = int(torch.randint(self.length, (), generator=generator))
        steps = self.steps(batch_size)
        order = torch.randperm((len(self.train) - self.length) // self.length, generator=generator)
        starts = first + self.length * order[: steps * batch_size].view(steps, batch_size)
        for chosen in starts[:, part.of(batch_size)].to(self.train.device):
            yield self._examples(self.train, chosen)

    def valid(self, part: Part = WHOLE) -> Iterator[Batch]:
        """The validation part, as :meth:`test`."""
        return self._in_order(self.valid_tokens, part)

    def test(self, part: Part = WHOLE) -> Iterator[Batch]:
        """The test part in order, without the tokens after its last whole example."""
        return self._in_order(self.test_tokens, part)

    def to(self, device: torch.device) -> Tokens:
        """The same text with its tokens on ``device``."""
        parts = (self.train, self.valid_tokens, self.test_tokens)
        train, valid, test = (part.to(device) for part in parts)
        return replace(self, train=train, valid_tokens=valid, test_tokens=test)

    def _in_order(self, tokens: Tensor, part: Part) -> Iterator[Batch]:
        starts = torch.arange(0, len(tokens) - self.length, self.length, device=tokens.device)
        for chosen in part.turns(starts.split(max(1, EVALUATED // self.length))):
            yield self._examples(tokens, chosen)

    def _examples(self, tokens: Tensor, starts: Tensor) -> Batch:
        places = starts[:, None] + torch.arange(self.length + 1, device=starts.device)
        both = tokens[places].long()
        return both[:, :-1], both[:, 1:]


def text(path: Path, inputs: Text, *, name: str) -> Tokens:
    """The text in the file ``path``, or in the three files of the folder ``path``.

    Raises:
        LabError: a file is missing, unreadable, empty, too short, or is to be characters and is no UTF-8.
    """
    several = path.is_dir()
    files = [path / f"{part}.txt" for part in PARTS] if several else [path]
    parts = [_tokens(file, inputs) for file in files]
    if not several:
        places = [round(share * len(parts[0])) for share in SHARES]
        parts = np.split(parts[0], places)
    if inputs.unit == "bytes":
        train, valid, test = map(torch.from_numpy, parts)
        return Tokens(train, valid, test, inputs.length, 256, name)
    vocabulary, numbers = np.unique(np.concatenate(parts), return_inverse=True)
    whole = torch.from_numpy(numbers.astype(np.uint8 if len(vocabulary) <= 256 else np.int32))
    train, valid, test = whole.split([len(part) for part in parts])
    return Tokens(train, valid, test, inputs.length, len(vocabulary), name, "".join(map(chr, vocabulary)))


def _tokens(path: Path, inputs: Text) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """The bytes of a file, or the code points of its characters."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabError(
            f"{path}: cannot be read: {error.strerror}; --data-dir must name a text, or its folder"
        ) from None
    if not content:
        raise LabError(f"{path}: is empty; put the text there")
    if inputs.unit == "bytes":
        return np.frombuffer(content, dtype=np.uint8).copy()
    try:
        return np.frombuffer(content.decode().encode("utf-32-le"), dtype=np.uint32)
    except UnicodeError as error:
        raise LabError(f"{path}: is no UTF-8 ({error}); read it as bytes, or convert it") from None
