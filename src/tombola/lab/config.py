"""What one run *is*: every setting that its numbers depend on, and nothing else.

Where the data lie, which device computes and how many threads help is not part of it. The hash of the settings names
the run's folder, so the same settings find the same folder again. Its file has every setting, and so has the hash: a
changed default makes another run. Only settings that came later are left out of the hash where they are what every run
was before there was the choice, so that older runs keep their names.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tombola.lab.errors import LabError
from tombola.lab.inputs import Images, Inputs, Text
from tombola.lab.later import with_later, without_later
from tombola.lab.methods import BUDGETS, METHODS, PATTERNS, Dense, Method, Pruning, SoftMethod, never_dense
from tombola.lab.settings import SGD, Adam, AdamW, Constant, Cosine, Drops, Optimizer, Schedule, WarmUp
from tombola.lab.strict import Codec, parse
from tombola.lab.transfer import Transfer
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snfs import SNFS
from tombola.methods.stochastic import StochasticSparsification

Control: TypeAlias = Literal["shuffled", "reinitialised"]

_OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
_SCHEDULES = {"constant": Constant, "drops": Drops, "cosine": Cosine, "warm-up": WarmUp}
_INPUTS = {"images": Images, "text": Text}
_CODEC = Codec({**METHODS, **PATTERNS, **_OPTIMIZERS, **_SCHEDULES, **_INPUTS}, BUDGETS)
_CONSTANT = Constant()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The identity of one run.

    Args:
        data: one of ``tombola.lab.data.DATA`` or the user's ``module:function``.
        model: a name of ``tombola.lab.models.MODELS`` or the user's ``module:function``.
        width: multiplier of the model's numbers of channels.
        method: with all its settings. The optimiser of the scores is given by ``score_optimizer`` instead.
        score_optimizer: of Continuous and Stochastic Sparsification; None: the sibling of ``optimizer``.
        seed: of the initial weights, the order of the examples, and every other random choice.
        rounds: of the ticket search. There is none with a method of ``Sparse`` or with Continuous Sparsification that
            has ``harden_at``: these train one network in one go.
        epochs: of each round, and of each retraining.
        batch_size, augment: examples a step; flip and crop them at random (images only).
        optimizer, schedule: of the weights, the same in each round and retraining.
        rewind_step: the optimiser step of round 1 whose weights tickets start from; 0: the initial weights.
        retrain: rounds whose tickets are trained again to be measured, or ``"all"``. The tickets of IMP with rewinding
            are trained by the next round anyhow; there only the last round makes a difference.
        controls, control_rounds: which controls are trained for the tickets of which rounds. Lottery initialisation
            and a supermask have one ticket, that of round 1; a control of a supermask is measured and not trained,
            as the supermask is.
        unmasked: maskable parameters that get no mask; the papers' choice for a model is ``models.unmasked(model)``.
        evaluate_every: epochs between measurements on the test set; the last epoch is always measured.
        sparse: the masked layers are sparse layers while they train; the method is one that has them.
        inputs: how images or a text are read; None for data that leave nothing open.
        label_smoothing: share of each label that training spreads over all classes.
        clip: largest norm of the gradients of all weights together; None: they are left alone.
        examples: train on the first so many alone, for smaller experiments; None: on all.
        lottery: of a method that moves connections: train once more from the initial weights with the connections of
            the end, ``"fixed"`` or ``"moving"`` on; ``"no"``: do not.
        transfer: of a search: other data that the tickets of ``retrain``, and their controls, are trained on too.
        precision, channels_last: how the network computes, as :class:`tombola.lab.runs.mode.Mode` has them.
        compile: train by code that ``torch.compile`` makes, on CUDA in CUDA graphs, where that can be had.
        micro_batch: compute each step in parts of at most so many examples, whose gradients are added up, for batches
            that the memory of the device does not hold; batch norm sees the parts. None: all at once.

    Raises:
        ValueError: a value outside its range, or settings that contradict each other.
    """

    data: str
    model: str
    width: float = 1.0
    method: Method
    score_optimizer: Optimizer | None = None
    seed: int = 0
    rounds: int = 1
    epochs: int
    batch_size: int
    augment: bool = False
    optimizer: Optimizer
    schedule: Schedule = _CONSTANT
    rewind_step: int = 0
    retrain: Literal["all"] | tuple[int, ...] = "all"
    controls: tuple[Control, ...] = ()
    control_rounds: tuple[int, ...] = ()
    unmasked: tuple[str, ...] = ()
    evaluate_every: int = 1
    sparse: bool = False
    inputs: Inputs | None = None
    label_smoothing: float = 0.0
    clip: float | None = None
    examples: int | None = None
    lottery: Literal["no", "fixed", "moving"] = "no"
    transfer: Transfer | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for key in ("rounds", "epochs", "batch_size", "evaluate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be 1 or more, not {getattr(self, key)}")
        for key in ("examples", "micro_batch"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"{key} must be 1 or more, not {value}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be 0 or more and below 1, not {self.label_smoothing}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, not {self.clip}")
        if not self.width > 0:
            raise ValueError(f"width must be above 0, not {self.width}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}")
        if self.rewind_step < 0:
            raise ValueError(f"rewind_step must be 0 or more, not {self.rewind_step}")
        for key in ("retrain", "control_rounds"):
            rounds = getattr(self, key)
            if rounds != "all" and (bad := [r for r in rounds if not 1 <= r <= self.rounds]):
                raise ValueError(f"{key} must be rounds from 1 to {self.rounds}, not {bad[0]}")
        if bool(self.controls) != bool(self.control_rounds):
            raise ValueError("controls and control_rounds must be given together")
        if not self.searches and (self.rounds > 1 or self.rewind_step):
            raise ValueError(f"rounds and rewind_step must be left alone: {self.method_name} makes no search")
        if self.controls and not self.finds_tickets:
            raise ValueError(f"controls must be left alone: {self.method_name} finds no ticket")
        if self.score_optimizer is not None and not isinstance(self.method, SoftMethod):
            raise ValueError("score_optimizer must be null for a method that learns no scores")
        if self.lottery != "no" and (self.sparse or not isinstance(self.method, RigL | SET | SNFS)):
            raise ValueError(f"lottery must be no for {'sparse layers' if self.sparse else self.method_name}")
        if self.transfer is not None and not self.transferred():
            why = "no ticket is retrained" if self.searches else f"{self.method_name} finds no ticket"
            raise ValueError(f"transfer must be null where {why}")
        if self.sparse and (self.precision != "fp32" or self.channels_last or self.compile):
            raise ValueError("precision must be fp32, channels_last and compile false for sparse layers")
        if self.sparse and (problem := never_dense(self.method)):
            raise ValueError(f"sparse must be false for {self.method_name}, which {problem}")

    def to_json(self) -> str:
        """Every setting, as indented JSON.

        Raises:
            LabError: a setting that is no data, or not of its type.
        """
        return json.dumps(_CODEC.encode(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "config") -> RunConfig:
        """The config that :meth:`to_json` of this or an older version wrote. ``where``, the file's name, begins each
        complaint.

        Raises:
            LabError: unknown, missing or doubled keys, wrong types, values out of range.
        """
        plain = parse(text, where=where)
        config = _CODEC.decode(with_later(plain), cls, where=where)
        assert isinstance(config, cls)
        return config

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The config in the file ``path``.

        Raises:
            LabError: it cannot be read, or as for :meth:`from_json`.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"{path}: cannot be read: {error}") from error
        return cls.from_json(text, where=str(path))

    @property
    def content_hash(self) -> str:
        """The first 12 hex digits of the SHA-256 of all settings, but for later ones that are as they were before."""
        canonical = json.dumps(
            without_later(_CODEC.encode(self)), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def folder_name(self) -> str:
        """``<method>-<model>-<data>-s<seed>-<hash>``, of letters that any file system takes."""
        parts = (self.method_name, self.model, self.data)
        tidy = "-".join(re.sub(r"[^A-Za-z0-9_.]+", ".", part)[-40:] for part in parts)
        return f"{tidy}-s{self.seed}-{self.content_hash}"

    @property
    def method_name(self) -> str:
        """The method's name in ``METHODS``."""
        return next(name for name, kind in METHODS.items() if type(self.method) is kind)

    @property
    def setting(self) -> str:
        """The settings that tell runs of a method apart in a table."""
        width = "" if self.width == 1 else f"width={self.width:g}"
        lottery = "" if self.lottery == "no" else f"lottery={self.lottery}"
        precision = "" if self.precision == "fp32" else self.precision
        parts = (self._method_setting, width, "sparse" if self.sparse else "", lottery, precision)
        return " ".join(part for part in parts if part)

    @property
    def _method_setting(self) -> str:
        match self.method:
            case Dense(times=times):
                shorter = f"{self.total_epochs} epoch{'s' if self.total_epochs > 1 else ''}"
                return "" if times == 1 else "equal epochs" if times > 1 else shorter
            case IMP(keep=keep):
                return f"keep={keep:g}" if isinstance(keep, float | int) else "keep by layer"
            case ContinuousSparsification(density=None) | StochasticSparsification():
                return f"s0={self.method.initial_score:g}"
            case ContinuousSparsification(density=tuple() as densities):
                return "density=" + ",".join(f"{density:g}" for density in densities)
            case ContinuousSparsification(density=density):
                return f"density={density:g}"
            case _:
                return f"density={self.method.density:g} {self.method.pattern or ''}".rstrip()

    @property
    def title(self) -> str:
        """What a person calls this run: method, setting, model, data and seed."""
        head = " ".join(part for part in (self.method_name, self.setting) if part)
        data = self.data if self.transfer is None else f"{self.data} → {self.transfer.data}"
        return f"{head} · {self.model} · {data} · seed {self.seed}"

    @property
    def target(self) -> RunConfig:
        """How tickets are trained on the data of ``transfer``: as here, but for what it says."""
        assert self.transfer is not None
        there = {f.name: getattr(self.transfer, f.name) for f in fields(self.transfer)}
        return replace(self, transfer=None, **there)

    @property
    def searches(self) -> bool:
        """Whether the run searches tickets, round by round, and trains them again."""
        pruning = isinstance(self.method, ContinuousSparsification) and self.method.harden_at is not None
        return isinstance(self.method, SoftMethod | IMP) and not pruning and not self.supermask

    @property
    def finds_tickets(self) -> bool:
        """Whether there are tickets that controls can be made of: masks over weights that were not trained with them.

        Those of a search, of lottery initialisation, or a supermask.
        """
        return self.searches or self.supermask or self.lottery != "no"

    @property
    def supermask(self) -> bool:
        """Whether the weights never change and what is measured is the mask over them, trained no further."""
        frozen = isinstance(self.method, SoftMethod) and not self.method.train_weights
        return frozen and self.rounds == 1 and self.retrain == ()

    @property
    def search_method(self) -> SoftMethod | IMP:
        """The method as ``TicketSearch`` takes it, with ``score_optimizer`` built in."""
        assert isinstance(self.method, SoftMethod | IMP)
        if self.score_optimizer is None or isinstance(self.method, IMP):
            return self.method
        return replace(self.method, score_optimizer=partial(_make, self.score_optimizer))

    @property
    def computed_batch(self) -> int:
        """Examples that are computed at a time."""
        return min(self.batch_size, self.micro_batch or self.batch_size)

    @property
    def training_method(self) -> Pruning:
        """The method as ``attach`` takes it, with ``score_optimizer`` built in."""
        assert isinstance(self.method, Pruning)
        if self.score_optimizer is None or not isinstance(self.method, SoftMethod):
            return self.method
        return replace(self.method, score_optimizer=partial(_make, self.score_optimizer))

    @property
    def free_retraining(self) -> bool:
        """Whether each round trains the ticket of the one before from rewound weights: IMP with rewinding."""
        return isinstance(self.method, IMP) and self.method.rewind

    def retrained(self) -> tuple[int, ...]:
        """Rounds whose tickets need a training of their own, in order."""
        rounds = range(1, self.rounds + 1) if self.retrain == "all" else sorted(set(self.retrain))
        return tuple(r for r in rounds if r == self.rounds or not self.free_retraining)

    def transferred(self) -> tuple[int, ...]:
        """Rounds whose tickets are trained on the data of ``transfer``, in order."""
        if self.transfer is None or not self.searches:
            return ()
        return tuple(range(1, self.rounds + 1)) if self.retrain == "all" else tuple(sorted(set(self.retrain)))

    def stretched(self, epochs: int) -> int:
        """So many epochs times as many as the method says, at least 1."""
        return max(1, round(epochs * self.method.times)) if isinstance(self.method, Dense) else epochs

    @property
    def total_epochs(self) -> int:
        """Epochs that the run trains from its start to its end."""
        controls = len(set(self.controls)) * len(set(self.control_rounds))
        if not self.searches:
            return self.stretched(self.epochs) * (1 if self.lottery == "no" else 2 + controls)
        there = 0 if self.transfer is None else self.transfer.epochs * (len(self.transferred()) + controls)
        return self.epochs * (self.rounds + len(self.retrained()) + controls) + there


def _make(settings: Optimizer, groups: list[dict[str, Any]]) -> Any:
    return settings.make(groups)
