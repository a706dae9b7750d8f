"""What a run trains, made from its config: the model, its optimiser, its masked parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tombola.flops import Count
from tombola.lab import models
from tombola.lab.arithmetic import count, forward, training_cost
from tombola.lab.config import RunConfig
from tombola.lab.data import Dataset
from tombola.lab.errors import LabError
from tombola.lab.methods import Dense
from tombola.lab.runs.mode import Mode, check_precision
from tombola.lab.runs.thin import check_thin, thin
from tombola.lab.seeds import derive
from tombola.methods.magnitude import IMP
from tombola.methods.protocol import HardMethod
from tombola.selection import maskable
from tombola.ticket import model_tensors


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Makes the model of ``config`` for ``data`` on ``device``, always the same one."""

    config: RunConfig
    data: Dataset
    device: torch.device

    def model(self, *, seed: int | None = None) -> nn.Module:
        """The model as it begins, or as it would with another ``seed``.

        Raises:
            LabError: as ``tombola.lab.models.build``.
        """
        seed = derive(self.config.seed, "initial weights") if seed is None else seed
        shape, classes = self.data.input_shape, self.data.classes
        width = self.config.width
        return models.build(self.config.model, input_shape=shape, classes=classes, seed=seed, width=width).to(
            self.device
        )

    @cached_property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.data.steps(self.config.batch_size)

    def thin(self, model: nn.Module) -> None:
        """Exchange the masked layers for sparse ones, with the connections that the method's first masks would have.

        Raises:
            LabError: a masked layer cannot be sparse.
            ValueError: as ``attach``.
        """
        masked, method = self.maskable(model), self.config.training_method
        check_thin(model, masked, self.config.model)
        assert isinstance(method, HardMethod)
        thin(model, method.start(masked, generator=torch.Generator().manual_seed(self.mask_seed)))

    @property
    def mode(self) -> Mode:
        """How the model computes, in training and when it is measured."""
        return Mode(precision=self.config.precision, channels_last=self.config.channels_last)

    @property
    def mask_seed(self) -> int:
        """Seed of the method's random choices, the first masks among them."""
        return derive(self.config.seed, "masks")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all weights of ``model`` that learn."""
        return self.config.optimizer.make([p for p in model.parameters() if p.requires_grad])

    def maskable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter of what carries a mask in ``model``.

        Raises:
            LabError: the config leaves a parameter unmasked that is not there, or leaves none to be masked.
        """
        names = dict(model.named_parameters())
        for name in self.config.unmasked:
            if name not in names:
                raise LabError(f"unmasked: {self.config.model} has no parameter {name!r}; it has {', '.join(names)}")
        try:
            return dict(maskable(model, lambda name, parameter: name not in self.config.unmasked))
        except ValueError as error:
            raise LabError(f"model {self.config.model!r}: {error}") from error

    def arithmetic(self, model: nn.Module, counts: Mapping[str, int] | None = None) -> float | None:
        """What training ``model`` took in multiply-adds, in epochs of the dense net of full width, if its masked layers
        came to these counts; None if a masked layer cannot be counted."""
        config, masked = self.config, self.maskable(model)
        epochs = config.stretched(config.epochs)
        steps = epochs * self.steps
        if self._counted is None or self._full is None:
            return None
        cost = 1.0
        if not isinstance(config.method, Dense):
            assert not isinstance(config.method, IMP)
            cost = training_cost(config.method, self._counted, masked, steps=steps, counts=counts)
        return epochs * cost * self._counted.dense / self._full

    @cached_property
    def _counted(self) -> Count | None:
        model = self.model()
        return count(model, self.data, self.maskable(model))

    @cached_property
    def _full(self) -> int | None:
        """Multiply-adds of the dense net of full width, for one example."""
        name, found = self.config.model, self._counted
        if self.config.width != 1:
            shape, classes = self.data.input_shape, self.data.classes
            with torch.device("meta" if name in models.MODELS else self.device):  # wide nets take long to initialise
                net = models.build(name, input_shape=shape, classes=classes, seed=0)
            found = count(net, self.data, self.maskable(net))
        return found.dense if found is not None else None

    @cached_property
    def _stored(self) -> tuple[dict[str, tuple[int, int]], int]:
        """Of each masked parameter its weights and the bytes of one, and the bytes of the dense net."""
        model = self.model()
        sizes = {name: (weight.numel(), weight.element_size()) for name, weight in self.maskable(model).items()}
        return sizes, sum(tensor.nbytes for tensor in model_tensors(model).values())

    def share(self, counts: Mapping[str, int]) -> float | None:
        """Multiply-adds of the network with so many weights in its masked layers, relative to the dense one of full
        width; None if a masked layer cannot be counted."""
        if self._counted is None or self._full is None:
            return None
        return forward(self._counted, counts) / self._full

    @property
    def epoch_cost(self) -> int | None:
        """Multiply-adds of one epoch of the dense net of full width, forwards; None if they cannot be counted."""
        return None if self._full is None else self._full * self.steps * self.config.batch_size

    def weigh(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Of the network with so many weights in its masked layers: multiply-adds for one example (None: they cannot be
        counted), and bytes as :func:`tombola.flops.size_in_bytes` has them, of a dense net without bits for a mask."""
        sizes, stored = self._stored
        for name, (weights, each) in sizes.items():
            bits = 0 if isinstance(self.config.method, Dense) else math.ceil(weights / 8)
            stored += (counts[name] - weights) * each + bits
        adds = None if self._counted is None else round(forward(self._counted, counts))
        return {"multiply_adds": adds, "bytes": stored}

    @torch.no_grad()
    def check(self) -> None:
        """Let the model look at a few examples, so that one that does not fit the data is found before the training.

        Raises:
            LabError: the model cannot take them, or gives something else than one logit for each class (of each
                token, for texts), or the device cannot compute in the precision asked for.
        """
        check_precision(self.config.precision, self.device)
        who = f"model {self.config.model!r} on data {self.config.data!r}"
        x, y = next(iter(self.data.test()), (None, None))
        if x is None or y is None:
            raise LabError(f"{who}: the test set has no example")
        model = self.model()
        try:
            output = self.mode.outputs(model.eval(), x[:2])
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise LabError(f"{who}: it cannot take inputs of shape {tuple(x[:2].shape)}: {error}") from error
        wanted = (*y[:2].shape, self.data.classes)
        if not isinstance(output, torch.Tensor) or tuple(output.shape) != wanted:
            found = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
            axes = "examples, tokens, classes" if y.ndim > 1 else "examples, classes"
            raise LabError(f"{who}: its output is {found}, not logits of shape {wanted} ({axes})")
        if self.config.sparse:
            masked = self.maskable(model)
            check_thin(model, masked, self.config.model)
            thin(model, {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in masked.items()})
            try:
                model(x[:2])
            except Exception as error:  # whatever a model's own code makes of layers without a dense weight
                raise LabError(f"--sparse: {who} does not run with sparse layers: {error}; leave it out") from error
