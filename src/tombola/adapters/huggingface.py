"""Any sparse method in Hugging Face's ``Trainer``.

    callback = AttachCallback(tombola.RigL(density=0.1))
    trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
    trainer.train()                 # or train(resume_from_checkpoint=True): goes on as if it had never stopped
    model.save_pretrained(folder)   # the sparse weights, under their usual names

Under torchrun or `accelerate launch` ranks are compared as `attach` compares them, with DDP and with FSDP2
(``TrainingArguments(fsdp=True)``). FSDP in its first form is refused; DeepSpeed is not supported.

While it trains, ``evaluate()`` and checkpoints see the network as it trains: for a soft method its soft weights. When
``train()`` returns, the model is the ticket, and ``evaluate()`` measures that.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from tombola.attach import Attachment
from tombola.files import write_atomically
from tombola.methods.protocol import HardMethod, SoftMethod
from tombola.ranks import refuse_flattened
from tombola.selection import Select, maskable, unwrapped
from tombola.sharded import local

FILE = "tombola.pt"
"""In each checkpoint folder: the state of the attachment."""


def weights(model: nn.Module) -> list[str]:
    """Names of what one expects to be masked in a transformer, for ``attach(..., select=weights(model))``.

    That is the default of :func:`tombola.maskable` and the weights of ``transformers.pytorch_utils.Conv1D``, the linear
    layer of GPT-2 and its like, which holds its weight as (inputs, outputs). An output layer that is tied to an
    embedding stays dense.

    Raises:
        ValueError: there is nothing of these.
    """
    plain = unwrapped(model)
    transposed = {f"{name}.weight" for name in _transposed(plain)}
    try:
        usual = set(maskable(plain))
    except ValueError:
        if not transposed:
            raise
        usual = set()
    return [name for name, p in plain.named_parameters() if name in usual or (name in transposed and p.requires_grad)]


def _transposed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Conv1D)]


class AttachCallback(TrainerCallback):
    """Attaches a method when training begins, saves its state in each checkpoint, leaves a plain model at the end.

    Logs gain ``density``, and for soft methods ``temperature`` and ``undecided``, in ``trainer.state.log_history``.

    Args:
        method: a method of tombola.
        select: which parameters to mask, as for ``attach``; None: :func:`weights`.
        seed: of every random choice of the method.

    Attributes:
        run: the :class:`~tombola.Attachment`; None before training begins. ``run.masks`` stays when it has ended.

    Raises (when training begins):
        ValueError, TypeError: as ``attach``; a pattern for weights that are (inputs, outputs); or training resumes
            without the state of the method, or with that of another model.
    """

    def __init__(self, method: HardMethod | SoftMethod, *, select: Select | None = None, seed: int = 0) -> None:
        self.method = method
        self.select = select
        self.seed = seed
        self.run: Attachment | None = None
        self._live = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: Any = None,
        **others: Any,
    ) -> None:
        """Attach; when training resumes, go on from the checkpoint."""
        if self._live and self.run is not None:  # a training that was interrupted
            self.run._let_go()  # the weights may be those of a checkpoint by now
            self._live = False
        refuse_flattened(model)
        self._arguments: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "steps": state.max_steps,
            "steps_per_epoch": _steps_per_epoch(train_dataloader, args.gradient_accumulation_steps),
            "select": self._selected(model),
            "seed": self.seed,
            "copies": distributed.group.WORLD if args.world_size > 1 else None,  # callbacks are not shown a DDP
        }
        if state.global_step == 0:
            self.run = Attachment(method=self.method, **self._arguments)
        else:
            said = args.resume_from_checkpoint
            folder = Path(said) if isinstance(said, str) else _checkpoint(args, state)
            self.run = self._resumed(folder)
        self._live = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Write the state of the method beside that of the model."""
        if self._live and self.run is not None:
            content = self.run.state_dict(full=True)  # for which all ranks are needed if it is sharded
            if args.should_save:
                file = io.BytesIO()
                torch.save(content, file)
                write_atomically(_checkpoint(args, state) / FILE, file.getbuffer())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Add what the method says of itself to the logs of training steps."""
        if self._live and self.run is not None and logs is not None and "loss" in logs:
            said = self.run.diagnostics()
            keys = ["density"] if said["temperature"] is None else ["density", "temperature", "undecided"]
            for entries in (logs, state.log_history[-1]):
                entries.update({key: said[key] for key in keys})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Leave a plain model: the ticket, of the best checkpoint if the Trainer has loaded that."""
        if self._live and self.run is not None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                self.run._let_go()
                self.run = self._resumed(Path(state.best_model_checkpoint))
            self.run.detach()
            self._live = False

    def _selected(self, model: nn.Module) -> Select:
        selected = weights(model) if self.select is None else self.select
        if getattr(self.method, "pattern", None) is not None:
            chosen = maskable(model, selected)
            for name in _transposed(unwrapped(model)):
                if f"{name}.weight" in chosen:
                    raise ValueError(
                        f"AttachCallback: {name}.weight is (inputs, outputs), in which a pattern would run along the "
                        "outputs; leave it out with select=…, or take no pattern"
                    )
        return selected

    def _resumed(self, folder: Path) -> Attachment:
        """An attachment that goes on from a checkpoint, whose weights the model has."""
        own = maskable(self._arguments["model"], self._arguments["select"])
        before = {name: local(parameter).detach().clone() for name, parameter in own.items()}
        run = Attachment(method=self.method, state=_read(folder / FILE), **self._arguments)
        wrong = [name for name, p in run.parameters.items() if not torch.equal(local(p), before[name])]
        if run._ranks.any(bool(wrong)):
            run._let_go()
            with torch.no_grad():
                for name, values in before.items():
                    local(own[name]).copy_(values)
            run._ranks.reshard()
            which = repr(wrong[0]) if wrong else "a weight of another rank"
            raise ValueError(
                f"{folder / FILE} is not of the weights that the Trainer has loaded ({which} differs); "
                "give the checkpoint's folder as TrainingArguments(resume_from_checkpoint=…) too"
            )
        return run


def _steps_per_epoch(loader: Any, accumulated: int) -> int | None:
    try:
        return math.ceil(len(loader) / accumulated)
    except TypeError:  # a stream
        return None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    if state.is_hyper_param_search:
        raise ValueError("AttachCallback: no checkpoints within hyperparameter_search; pass save_strategy='no'")
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ValueError(
            f"training resumes, but there is no {path}: give the checkpoint's folder as "
            "TrainingArguments(resume_from_checkpoint=…) too, or begin anew if it was saved without AttachCallback"
        ) from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}); go on from another checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds {type(state).__name__}, not the state of an attachment")
    return state
