"""Images that are read from their files in each epoch, by processes of their own: for what does not fit into memory.

How an image is cropped and flipped follows from the epoch's seed and the image's number. So it does not matter which
process reads it, or how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, Literal

import torch
import torch.utils.data
from torch import Tensor

from tombola.lab.data.augment import cut, positions
from tombola.lab.data.base import WHOLE, Batch, Part, whole_batches
from tombola.lab.data.images import Files, cropped, decoded, middle, without_warnings
from tombola.lab.errors import LabError
from tombola.lab.seeds import derive

EVALUATED = 250  # images at a time
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as everybody has them
GREY = ((0.449,), (0.226,))  # of grey images: the means of the three

Key = tuple[int, int | None]
"""Which image, and the seed of the epoch if it is to be augmented."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An image folder that is read anew in each epoch.

    train, test_files: files and labels. size: height and width of an example. cutout, channels: as in ``Images``.
    skip_damaged: leave damaged images out, and ``tell`` how many they were, instead of stopping at the first. workers:
    processes that read; 0: this one does.
    """

    train: Files
    test_files: Files
    size: int
    cutout: int
    channels: Literal[1, 3]
    skip_damaged: bool
    name: str
    workers: int
    tell: Callable[[str], None]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.train.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.channels, self.size, self.size)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch: the whole ones.

        Raises:
            LabError: there is not one whole batch.
        """
        return whole_batches(self.name, len(self.train.paths), batch_size)

    def epoch(self, seed: int, *, batch_size: int, augment: bool, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of one epoch in the order that ``seed`` gives. A batch is smaller by its damaged images, and a
        part of one may be empty.

        Raises:
            LabError: an image is damaged and not to be skipped, or all of a batch are.
        """
        generator = torch.Generator().manual_seed(seed)
        steps = self.steps(batch_size)
        order = torch.randperm(len(self.train.paths), generator=generator)[: steps * batch_size]
        mine = part.of(batch_size)
        numbers = order.view(steps, batch_size)[:, mine].tolist()
        for x, y, places in self._batches(self._training, self.train, numbers, seed if augment else None, part):
            if augment and self.cutout:
                centres = positions((batch_size,), self.size, self.size, generator)[mine][places].to(self.device)
                yield cut(x, centres, self.cutout), y
            else:
                yield x, y

    def test(self, part: Part = WHOLE) -> Iterator[Batch]:
        """The middle of each test image, in order."""
        numbers = list(range(len(self.test_files.paths)))
        batches = [numbers[start : start + EVALUATED] for start in range(0, len(numbers), EVALUATED)]
        for x, y, _ in self._batches(self._testing, self.test_files, list(part.turns(batches)), None, part):
            yield x, y

    def to(self, device: torch.device) -> Stream:
        """The same data set with batches on ``device``."""
        return replace(self, device=device)

    @cached_property
    def _training(self) -> _Reading:
        return _Reading(self.train.paths, self.size, self.channels, self.workers, pin=self.device.type == "cuda")

    @cached_property
    def _testing(self) -> _Reading:
        return _Reading(self.test_files.paths, self.size, self.channels, self.workers, pin=self.device.type == "cuda")

    @cached_property
    def _known(self) -> set[str]:
        """What was said of damaged images."""
        return set()

    def _batches(
        self, reading: _Reading, files: Files, batches: Sequence[Sequence[int]], seed: int | None, part: Part
    ) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """The good images of each of ``batches``, which are those of ``part``: inputs, labels, and places in it."""
        usual = (MEAN, STD) if self.channels == 3 else GREY
        mean, std = (torch.tensor(channels, device=self.device).view(-1, 1, 1) for channels in usual)
        damaged: set[str] = set()
        for numbers, (x, good, problems) in zip(batches, reading.read(batches, seed), strict=True):
            if problems and not (self.skip_damaged and (good or part.count > 1)):
                raise LabError(problems[0])
            damaged.update(problems)
            y = files.labels[[numbers[place] for place in good]].to(self.device)
            x = x.to(self.device, non_blocking=True).view(len(good), *self.input_shape).float() / 255
            yield (x - mean) / std, y, good
        fresh = sorted(part.united(damaged) - self._known)
        if fresh:
            self._known.update(fresh)
            self.tell(skipped(self.name, len(fresh), len(files.paths), fresh[0]))


def skipped(name: str, damaged: int, images: int, first: str) -> str:
    """What is said of damaged images that were left out. ``first`` is what is wrong with one of them."""
    return f"{name}: {damaged} of {images:,} images left out as damaged; the first is {first.partition(';')[0]}"


class _Plan:
    """What the processes of a loader read next."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[int]] = ()
        self.seed: int | None = None

    def __iter__(self) -> Iterator[list[Key]]:
        return ([(number, self.seed) for number in numbers] for numbers in self.batches)


class _Reading:
    """A loader whose processes stay from one epoch to the next, and leave with it."""

    def __init__(self, paths: Sequence[str], size: int, channels: int, workers: int, *, pin: bool) -> None:
        self.plan = _Plan()
        self.loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            _Examples(paths, size, channels),
            batch_sampler=self.plan,
            num_workers=workers,
            collate_fn=_joined,
            pin_memory=pin,
            multiprocessing_context=_server() if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_with_parent,
            generator=torch.Generator(),  # its draws must not move the global one on
        )

    def read(self, batches: Sequence[Sequence[int]], seed: int | None) -> Iterator[tuple[Tensor, list[int], list[str]]]:
        """For each of ``batches`` what :func:`_joined` gives; augmented as ``seed`` has it, if there is one."""
        self.plan.batches, self.plan.seed = batches, seed
        return iter(self.loader)


def _server() -> BaseContext:
    """Forks processes off one that has no threads, which a fork could freeze, and no device, and has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _leave_with_parent(worker: int) -> None:
    """End this process as soon as the one that it reads for is gone, however that ended.

    PyTorch's own watch looks at the process that this one was forked off, which lives as long as this one does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


class _Examples(torch.utils.data.Dataset[Tensor | str]):
    """Number and seed to pixels, or to what is wrong with the file: an exception would lose its name on the way."""

    def __init__(self, paths: Sequence[str], size: int, channels: int) -> None:
        self.paths, self.size, self.channels = paths, size, channels

    def __getitem__(self, key: Key) -> Tensor | str:
        number, seed = key
        try:
            with without_warnings():
                image = decoded(self.paths[number], self.channels)
        except LabError as error:
            return str(error)
        if seed is None:
            return middle(image, self.size)
        return cropped(image, self.size, derive(seed, "example", number))


def _joined(examples: Sequence[Tensor | str]) -> tuple[Tensor, list[int], list[str]]:
    """Pixels of the good images, their places in the batch, and what is wrong with the others."""
    good = [(place, x) for place, x in enumerate(examples) if isinstance(x, Tensor)]
    x = torch.stack([x for _, x in good]) if good else torch.empty(0, dtype=torch.uint8)
    return x, [place for place, _ in good], [text for text in examples if isinstance(text, str)]
