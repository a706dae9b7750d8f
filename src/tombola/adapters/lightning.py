"""Any sparse method in Lightning's ``Trainer``.

    callback = AttachCallback(tombola.RigL(density=0.1))
    trainer = lightning.Trainer(max_epochs=10, callbacks=[callback])
    trainer.fit(module, loader)     # or fit(module, loader, ckpt_path=…): goes on as if it had never stopped

With several ranks these are compared as `attach` compares them: under DDP, and with FSDP2 (``ModelParallelStrategy``).
FSDP in its first form is refused; DeepSpeed is not supported.

(From a checkpoint in the middle of an epoch Lightning itself goes on with other batches than those that were left.)
While it trains, validation and checkpoints see the network as it trains: for a soft method its soft weights. When
``fit()`` returns, the module is the ticket, and ``trainer.validate(module)`` measures that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tombola.attach import Attachment
from tombola.methods.protocol import HardMethod, SoftMethod
from tombola.selection import Select


class AttachCallback(Callback):
    """Attaches a method when training begins, has its state in every checkpoint, leaves a plain module at the end.

    Logs ``density`` after each epoch.

    Args:
        method: a method of tombola.
        select: which parameters to mask, as for ``attach``; names are those in the LightningModule.
        seed: of every random choice of the method.

    Attributes:
        run: the :class:`~tombola.Attachment`; None before training begins. ``run.masks`` stays when it has ended.

    Raises (when training begins):
        ValueError, TypeError: as ``attach``; there is not exactly one optimiser, or nobody knows how many steps it will
            make; or training resumes from a checkpoint without the state of the method.
    """

    def __init__(self, method: HardMethod | SoftMethod, *, select: Select | None = None, seed: int = 0) -> None:
        self.method = method
        self.select = select
        self.seed = seed
        self.run: Attachment | None = None
        self._live = False
        self._saved: dict[str, Any] | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach; when training resumes, go on from the checkpoint."""
        self._leave()
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"AttachCallback: there are {len(trainer.optimizers)} optimisers; call tombola.attach(…) for one of "
                "them in on_train_start, and its detach() in on_train_end"
            )
        steps = trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("AttachCallback: methods need to know how long they train; give max_steps or max_epochs")
        if trainer.global_step and self._saved is None:
            raise ValueError(
                f"AttachCallback: training resumes from {trainer.ckpt_path}, which was saved without this callback; "
                "begin anew with its weights alone, or leave the callback out"
            )
        (optimizer,) = trainer.optimizers
        self._hook = optimizer.register_step_pre_hook(_evaluate_closure)  # before the hooks of attach
        try:
            self.run = Attachment(
                trainer.model,  # with the wrapper that says which ranks there are
                optimizer,
                self.method,
                steps=int(steps),
                select=self.select,
                steps_per_epoch=_steps_per_epoch(trainer),
                seed=self.seed,
                state=self._saved,
            )
        except BaseException:
            self._hook.remove()
            raise
        self._live, self._saved = True, None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the density."""
        if self.run is not None:
            self.log("density", self.run.density, sync_dist=True)  # alike on all ranks, but Lightning wants to be told

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a plain module: the ticket."""
        if self._live and self.run is not None and self._hook is not None:
            self.run.detach()
            self._hook.remove()
            self._live = False

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the state of the attachment, or nothing when none is at work."""
        return self.run.state_dict(full=True) if self._live and self.run is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint; it is taken up when training begins."""
        self._saved = state_dict or None

    def _leave(self) -> None:
        """Let go of a run that was interrupted."""
        if self._live and self.run is not None and self._hook is not None:
            self.run._let_go()  # the weights may be those of a checkpoint by now
            self._hook.remove()
            self._live = False


def _steps_per_epoch(trainer: Trainer) -> int | None:
    batches = trainer.num_training_batches
    return math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else None  # else a stream


def _evaluate_closure(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Lightning hands the backward pass and clipping to ``optimizer.step(closure=…)``. They belong before what tombola
    does in front of the step: all optimisers but LBFGS, which attach refuses, evaluate a closure once, and first."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None
    with torch.enable_grad():
        closure()
    return args[:1], {**kwargs, "closure": None}
