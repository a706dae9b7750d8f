"""convert(): the fastest form of a model under masks on this machine, layer by layer, as measured."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from tombola.compiled import need
from tombola.masks import Masks
from tombola.selection import unwrapped, wrappers
from tombola.sparse.around import make_aware
from tombola.sparse.choose import Choice, Times, fastest, whole
from tombola.sparse.conv import pads_evenly
from tombola.sparse.fuse import fused
from tombola.sparse.inference.program import Program
from tombola.sparse.swap import SPARSE, make_dense, make_sparse, weights
from tombola.sparse.timing import milliseconds


@dataclass(frozen=True)
class Row:
    """One layer: milliseconds of its passes over the example, the choice, and the bytes of its weights and positions.

    ``sparse_ms`` and ``dense_ms`` are None if that was not timed.
    """

    layer: str
    density: float
    dense_ms: float | None
    bf16_ms: float | None
    sparse_ms: float | None
    chosen: Choice
    bytes_before: int
    bytes_after: int


class Converted(nn.Module):
    """A model of :func:`convert`; it is called as the model was.

    One that was converted in ``eval`` mode is for inference: its parameters are frozen, so that it computes the fastest
    way also where nobody has turned gradients off.

    Attributes:
        net: the model as it runs.
        plain: the same with a step for each ReLU and norm, in the classes that it had but for sparse layers.
        rows: a :class:`Row` for each layer that could be sparse.
        dense_ms, chosen_ms: the whole model before and after, on the example; None if nothing was timed.
        as_program: whether it runs as one program without PyTorch between its layers, where no gradient is wanted.
    """

    plain: nn.Module

    def __init__(
        self,
        plain: nn.Module,
        rows: Sequence[Row],
        *,
        dense_ms: float | None,
        chosen_ms: float | None,
        as_program: bool = False,
    ) -> None:
        super().__init__()
        self.inference = not plain.training
        # for inference norms are folded into the layers, so that needs layers of its own
        self.net = fused(copy.deepcopy(plain) if self.inference else plain)
        if self.inference:
            self.net.requires_grad_(False)
        object.__setattr__(self, "plain", plain)  # not a submodule: its parameters are net's, or none to be trained
        self.rows, self.dense_ms, self.chosen_ms = tuple(rows), dense_ms, chosen_ms
        self.training = plain.training
        self.as_program, self._program = as_program and self.inference, Program()
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        if self.as_program and len(args) == 1 and not kwargs and isinstance(self.net, fx.GraphModule):
            result = self._program.run(self.net, args[0])
            if result is not None:
                return result
        return self.net(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Converted:
        self._program.forget()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Converted:
        """Set the mode; a model converted in ``eval`` mode has no norms left that could be trained.

        Raises:
            RuntimeError: it was converted for inference.
        """
        if mode and self.inference:
            raise RuntimeError("this model was converted for inference; convert(model.train(), …) makes one to train")
        super().train(mode)
        return self

    def to_dense(self) -> nn.Module:
        """The model in its own classes, with zeros for the missing weights.

        Raises:
            RuntimeError: see :meth:`current`.
        """
        model = copy.deepcopy(self.current())
        make_dense(model)
        return model.train(self.training)

    def current(self) -> nn.Module:
        """``plain``, with the weights that ``net`` has now.

        Raises:
            RuntimeError: those of ``net`` were changed or loaded after norms had become part of them.
        """
        if self.inference:
            now = self.net.state_dict()
            if now.keys() == self.plain.state_dict().keys():  # nothing was folded
                self.plain.load_state_dict(now)
            elif not _same(now, fused(copy.deepcopy(self.plain)).state_dict()):
                raise RuntimeError(
                    "the weights of this model were changed or loaded after convert() made its norms part of them, so "
                    "there is no way back to the dense model; load into that one, and convert it again"
                )
        return self.plain

    def table(self) -> str:
        """One line a layer, and the whole at the end."""
        width = max([len(row.layer) for row in self.rows] + [5])
        head = f"{'layer':<{width}}  density  dense ms   bf16 ms  sparse ms  chosen   bytes before   bytes after"
        lines = [head, *(_line(row, width) for row in self.rows)]
        before, after = (sum(getattr(row, key) for row in self.rows) for key in ("bytes_before", "bytes_after"))
        times = f"{_number(self.dense_ms):>8}  {'':>8}  {_number(self.chosen_ms):>9}  {'':<6}"
        lines.append(f"{'whole':<{width}}  {'':>7}  {times}  {before:>13,}  {after:>12,}")
        return "\n".join(lines)


def _forget(model: Converted, keys: Any) -> None:
    model._program.forget()


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal, on whatever devices."""
    return one.keys() == other.keys() and all(
        one[name].shape == tensor.shape and bool(one[name].to(tensor).isclose(tensor, 0, 0, equal_nan=True).all())
        for name, tensor in other.items()
    )


def _line(row: Row, width: int) -> str:
    times = f"{_number(row.dense_ms):>8}  {_number(row.bf16_ms):>8}  {_number(row.sparse_ms):>9}"
    sizes = f"{row.bytes_before:>13,}  {row.bytes_after:>12,}"
    return f"{row.layer:<{width}}  {row.density:7.4f}  {times}  {row.chosen:<6}  {sizes}"


def _number(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds:.3f}"


def convert(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    example: Any,
    choose: Literal["fastest", "sparse"] = "fastest",
    bf16: bool = False,
) -> Converted:
    """The same model, computing each layer in the way that is fastest on this machine.

    In ``eval`` mode it is made for inference: its parameters are frozen and its norms become part of other layers. In
    ``train`` mode it can be trained as it is.

    Every Linear, Conv1d, Conv2d and GRU is timed dense and sparse on the shape that ``example`` gives it: one pass
    forward in ``eval`` mode, and the way back too in ``train`` mode. Chosen is what is fastest over all of them, with
    the time of going from one layout to the other between them. The whole is timed as well: if it is not faster, all
    stay dense. A GRU is one layer, sparse with all its weights or dense with all of them.

    Args:
        model: float32 on the CPU. It stays as it is; the parameters of the result are new ones, so make the optimiser
            after converting.
        masks: parameter name -> bool tensor; None: the weights that are not zero.
        example: an input of the size that matters; a tuple for several.
        choose: ``"sparse"``: do not time, make every masked layer sparse that can be.
        bf16: whether dense layers may multiply in bfloat16, which leaves two to three significant digits.

    Raises:
        ValueError: a mask does not fit the model, or ``choose`` is neither.
        RuntimeError: the model is not on the CPU, where alone sparse layers compute; elsewhere stay dense.
        ImportError: Numba is missing.
    """
    if choose not in ("fastest", "sparse"):
        raise ValueError(f'convert: choose is "fastest" or "sparse", not {choose!r}')
    plain, given = prepared(model, masks)
    inputs = example if isinstance(example, tuple) else (example,)
    layers = convertible(plain)
    every = {name: masks_of(name, layer, given) for name, layer in layers.items()}
    masked: dict[str, Choice] = {
        name: "sparse" if any(f"{name}.{key}" in given for key in own) else "dense" for name, own in every.items()
    }
    times: dict[str, Times] = {}
    chosen, as_program, dense_ms, chosen_ms = masked, False, None, None
    if choose == "fastest":
        times, chosen = fastest(plain, inputs, every, bf16=bf16)
        # as a program layers pay that do not by themselves; one that was not timed is none that can be sparse here
        all_sparse = masked | dict.fromkeys(layers.keys() - times.keys(), "dense")
        ways = [(chosen, False)] + ([] if plain.training else [(all_sparse, True)])
        dense_ms, *taken = _whole_times(plain, every, ways, inputs)
        chosen_ms = min(taken)
        chosen, as_program = ways[taken.index(chosen_ms)]
        if dense_ms <= chosen_ms:
            chosen, chosen_ms, as_program = dict.fromkeys(layers, "dense"), dense_ms, False
    result = made(copy.deepcopy(plain), every, chosen)
    rows = [_row(name, every[name], times.get(name), chosen[name], layers[name], result) for name in layers]
    return Converted(result, rows, dense_ms=dense_ms, chosen_ms=chosen_ms, as_program=as_program)


def prepared(
    model: nn.Module, masks: Mapping[str, Tensor] | None, *, who: str = "convert"
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of ``model`` with its weights masked, and the masks; checked on behalf of ``who``."""
    need(who)
    for name, parameter in unwrapped(model).named_parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(
                f"{who}: {name!r} is on {parameter.device}; sparse layers compute on the CPU alone, so stay dense "
                "there, or move the model to the CPU"
            )
    plain = _in_own_classes(model)
    return plain, _applied(plain, masks, who)


def _in_own_classes(model: nn.Module) -> nn.Module:
    """A copy of the user's own module; of a converted one its dense form."""
    converted = next((wrapper for wrapper in wrappers(model) if isinstance(wrapper, Converted)), None)
    return copy.deepcopy(unwrapped(model)) if converted is None else converted.to_dense()


@torch.no_grad()
def _applied(model: nn.Module, masks: Mapping[str, Tensor] | None, who: str) -> dict[str, Tensor]:
    """Clear the weights outside the masks."""
    parameters = dict(model.named_parameters())
    if masks is None:
        found = {f"{n}.{key}": w for n, layer in convertible(model).items() for key, w in weights(layer).items()}
        masks = {name: weight != 0 for name, weight in found.items() if not bool(weight.all())}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"{who}: the model has no parameter {name!r}; it has {', '.join(parameters)}")
        if mask.dtype is not torch.bool or mask.shape != parameters[name].shape:
            wanted = tuple(parameters[name].shape)
            raise ValueError(f"{who}: the mask of {name!r} must be bool {wanted}, not {mask.dtype} {tuple(mask.shape)}")
        parameters[name].masked_fill_(~mask.cpu(), 0)
    return {name: mask.cpu() for name, mask in masks.items()}


def convertible(model: nn.Module) -> dict[str, Any]:
    """The layers that could be sparse: exactly of PyTorch's own classes, with weights of their own, that pad with zeros
    and on both sides alike."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in SPARSE
        and all(uses[id(weight)] == 1 and weight.dtype is torch.float32 for weight in weights(module).values())
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and (getattr(module, "padding", 0) != "same" or pads_evenly(module))
    }


def masks_of(name: str, layer: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``masks`` of the layer of that ``name``, by the names of its weights; of one that has none all of it."""
    return {
        key: masks.get(f"{name}.{key}", torch.ones_like(weight, dtype=torch.bool))
        for key, weight in weights(layer).items()
    }


def made(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]], chosen: Mapping[str, Choice]) -> nn.Module:
    """``model`` itself with each layer as chosen; ``masks``, by the names of layers and of their weights, are wanted of
    those to be sparse."""
    for name, choice in chosen.items():
        if choice == "bf16":
            make_aware(model.get_submodule(name), low_precision=True)
    sparse = [name for name, choice in chosen.items() if choice == "sparse"]
    if sparse:
        make_sparse(model, {f"{name}.{key}": mask for name in sparse for key, mask in masks[name].items()})
    return model


def _whole_times(
    plain: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor]],
    ways: Sequence[tuple[Mapping[str, Choice], bool]],
    inputs: tuple[Any, ...],
) -> list[float]:
    """Milliseconds of the dense model, in the better of PyTorch's layouts, and of it in each of these ways."""
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # copies, because running a model in training changes its running averages
    models = {"contiguous": copy.deepcopy(plain), "channels_last": last}
    for place, (chosen, as_program) in enumerate(ways):
        net = made(copy.deepcopy(plain), masks, chosen)
        models[f"way {place}"] = Converted(net, (), dense_ms=None, chosen_ms=None, as_program=as_program)
    found = milliseconds({name: whole(model, inputs) for name, model in models.items()})
    return [min(found.pop("contiguous"), found.pop("channels_last")), *found.values()]


def _row(
    name: str,
    masks: Mapping[str, Tensor],
    times: Times | None,
    choice: Choice,
    before: nn.Module,
    result: nn.Module,
) -> Row:
    dense, bf16, sparse = (None, None, None) if times is None else times
    sizes = (_bytes(before), _bytes(result.get_submodule(name)))
    return Row(name, Masks(masks).density, dense, bf16, sparse, choice, *sizes)


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
