"""From a fused network, as :mod:`torch.fx` traced it, to the steps of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from tombola.sparse.around import plain_class
from tombola.sparse.conv import SparseConv1d, SparseConv2d
from tombola.sparse.fuse import is_relu, only_user
from tombola.sparse.geometry import Pair
from tombola.sparse.inference.assemble import Assembly, Unable
from tombola.sparse.inference.images import Image
from tombola.sparse.inference.layouts import Picked, pooled
from tombola.sparse.layer import SparseLayer
from tombola.sparse.linear import SparseLinear


def translate(net: fx.GraphModule, shape: Sequence[int]) -> tuple[Assembly, Image]:
    """The steps for inputs of ``shape``, all of them computed at a time, and the output.

    Raises:
        Unable: there is something that no step can do.
    """
    translation = _Translation(net, shape)
    return translation.assembly, translation.result


_LAYERS: dict[type[nn.Module], type[SparseLinear] | type[SparseConv1d] | type[SparseConv2d]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}


class _BatchSize:
    """The number of images, where a network asks for it."""


class _Translation:
    def __init__(self, net: fx.GraphModule, shape: Sequence[int]) -> None:
        if not 2 <= len(shape) <= 4 or 0 in shape:
            raise Unable
        self.net, self.assembly = net, Assembly(shape[0])
        self.found: dict[fx.Node, Any] = {}
        self.fused: dict[fx.Node, fx.Node] = {}  # a ReLU that is part of the step before it
        for node in net.graph.nodes:
            if node.op == "placeholder":
                if self.found:
                    raise Unable  # another input
                height, width = (1, 1, *shape[2:])[-2:]
                self.found[node] = self.assembly.enter(shape[1], height, width, len(shape))
            elif node.op == "output":
                self.result = self.image(node.args[0])
                self.assembly.leave(self.result)
            else:
                self.found[node] = self._value(node)

    def value(self, node: Any) -> Image | Picked:
        """What a node gave."""
        found = self.found.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(found, (Image, Picked)):
            raise Unable
        return found

    def image(self, node: Any) -> Image:
        """The same in memory."""
        found = self.value(node)
        if isinstance(found, Picked):
            found = self.found[node] = self.assembly.compact(found)
        return found

    def changed(self, node: Any) -> Image:
        """The same, of a node that is changed in place: whoever else uses it would have to see that."""
        if isinstance(node, fx.Node) and len(node.users) > 1:
            raise Unable
        return self.image(node)

    def _value(self, node: fx.Node) -> Any:
        if node in self.fused:
            return self.found[self.fused[node]]
        if node.op == "call_module":
            module, (x, *more) = self.net.get_submodule(str(node.target)), node.args
            if more and isinstance(module, SparseLayer):
                return self.assembly.product(module, self.value(x), self.image(*more))
            if more or node.kwargs:
                raise Unable
            return self._of_module(node, module, x)
        table = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
        if node.target not in table:
            raise Unable
        try:
            return table[node.target](self, node, *node.args, **node.kwargs)
        except TypeError as error:  # arguments that the step does not know
            raise Unable from error

    def _of_module(self, node: fx.Node, module: Any, x: Any) -> Image | Picked:
        if isinstance(module, SparseLayer):
            return self.assembly.product(module, self.value(x))
        kind = plain_class(module)
        if kind in _LAYERS:
            return self.assembly.product(_all_there(module, kind, relu=self._takes_relu(node)), self.value(x))
        if kind is nn.BatchNorm2d:
            return self._norm(module, self.image(x))
        if kind is nn.ReLU:
            return self.assembly.relu(self.changed(x) if module.inplace else self.image(x))
        if kind is nn.Flatten:
            return self.flat(self.image(x), module.start_dim, module.end_dim)
        if kind in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d):
            return self.value(x)
        if kind is nn.MaxPool2d and not module.return_indices:
            sizes = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return self.pool(self.image(x), *sizes, largest=True)
        if kind is nn.AvgPool2d:
            sizes = (module.kernel_size, module.stride, module.padding, 1, module.ceil_mode)
            within = {"inside": not module.count_include_pad, "divisor": module.divisor_override}
            return self.pool(self.image(x), *sizes, **within)
        if kind is nn.AdaptiveAvgPool2d:
            return self.average(self.image(x), module.output_size)
        raise Unable

    def _norm(self, norm: Any, x: Image) -> Image:
        if norm.running_mean is None or x.dimensions != 4 or norm.num_features != x.channels:
            raise Unable
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.affine:
            shift = shift + norm.bias.detach()
        return self.assembly.affine(x, scale, shift, floor=getattr(norm, "relu", False))

    def sum(self, node: fx.Node, x: Any, y: Any) -> Image:
        """x + y, with the ReLU after it."""
        return self.assembly.sum(self.image(x), self.image(y), floor=self._takes_relu(node))

    def _takes_relu(self, node: fx.Node) -> bool:
        """Whether a ReLU alone follows, which is then part of the node's step."""
        follower = only_user(node)
        if follower is None or not is_relu(follower, self.net):
            return False
        self.fused[follower] = node
        return True

    def flat(self, x: Image, start: int, end: int) -> Image:
        """All dimensions but the first as one."""
        if start != 1 or end not in (-1, x.dimensions - 1):
            raise Unable
        return self.assembly.flat(x)

    def pool(
        self, x: Image, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
        *, largest: bool = False, inside: bool = False, divisor: int | None = None,
    ) -> Picked:  # fmt: skip
        """Windows: the largest, or the mean, of all of the window or of what is ``inside``."""
        kernel, padding = _pair(kernel), _pair(padding)
        stride = kernel if stride is None or stride == [] else _pair(stride)
        sizes = zip((x.height, x.width), kernel, padding, strict=True)
        if _pair(dilation) != (1, 1) or ceil or x.dimensions != 4 or any(n + 2 * p < k for n, k, p in sizes):
            raise Unable
        divisor = divisor or (0 if inside else kernel[0] * kernel[1])
        return pooled(x, kernel, stride, padding, largest=largest, divisor=divisor)

    def average(self, x: Image, size: Any) -> Image:
        """The mean of each channel as an image."""
        if _pair(size) != (1, 1) or x.dimensions != 4:
            raise Unable
        return self.assembly.mean(x, keep=True)


def _all_there(module: Any, kind: type[nn.Module], *, relu: bool) -> SparseLayer:
    """A dense layer as a sparse one with all its weights."""
    weight: Any = module.weight
    if weight.dtype is not torch.float32:
        raise Unable
    try:
        layer = _LAYERS[kind].from_dense(module, torch.ones_like(weight, dtype=torch.bool))
        layer.relu = relu
        return layer
    except ValueError as error:  # it pads with something else than zeros
        raise Unable from error


def _pair(size: Any) -> Pair:
    if isinstance(size, int):
        return size, size
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(number, int) for number in size):
        raise Unable
    return size[0], size[1]


# ---- functions and methods, with PyTorch's arguments


def _relu(to: _Translation, node: fx.Node, x: Any, inplace: bool = False) -> Image:
    return to.assembly.relu(to.changed(x) if inplace else to.image(x))


def _add(to: _Translation, node: fx.Node, x: Any, y: Any) -> Image:
    return to.sum(node, x, y)


def _add_in_place(to: _Translation, node: fx.Node, x: Any, y: Any) -> Image:
    to.changed(x)
    return to.sum(node, x, y)


def _flatten(to: _Translation, node: fx.Node, x: Any, start_dim: int = 0, end_dim: int = -1) -> Image:
    return to.flat(to.image(x), start_dim, end_dim)


def _mean(to: _Translation, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False) -> Image:
    image = to.image(x)
    if image.dimensions != 4 or not isinstance(dim, (tuple, list)) or sorted(d % 4 for d in dim) != [2, 3]:
        raise Unable
    return to.assembly.mean(image, keep=keepdim)


def _max_pool(
    to: _Translation, node: fx.Node, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Picked:  # fmt: skip
    if return_indices:
        raise Unable
    return to.pool(to.image(x), kernel_size, stride, padding, dilation, ceil_mode, largest=True)


def _avg_pool(
    to: _Translation, node: fx.Node, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Picked:  # fmt: skip
    inside = not count_include_pad
    return to.pool(to.image(x), kernel_size, stride, padding, 1, ceil_mode, inside=inside, divisor=divisor_override)


def _average(to: _Translation, node: fx.Node, x: Any, output_size: Any) -> Image:
    return to.average(to.image(x), output_size)


def _view(to: _Translation, node: fx.Node, x: Any, *sizes: Any) -> Image:
    image = to.image(x)
    first, *rest = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    size = image.channels * image.height * image.width
    is_batch = isinstance(first, fx.Node) and isinstance(to.found.get(first), _BatchSize)
    if not (is_batch and rest in ([-1], [size])) and not (first == -1 and rest == [size]):
        raise Unable
    return to.assembly.flat(image)


def _size(to: _Translation, node: fx.Node, x: Any, dim: Any = None) -> _BatchSize:
    to.value(x)
    if dim != 0:
        raise Unable
    return _BatchSize()


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: _relu,
    torch.relu: _relu,
    operator.add: _add,
    operator.iadd: _add_in_place,
    torch.add: _add,
    torch.flatten: _flatten,
    torch.mean: _mean,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _average,
}
_METHODS: dict[Any, Callable[..., Any]] = {
    "relu": _relu,
    "add": _add,
    "flatten": _flatten,
    "mean": _mean,
    "view": _view,
    "reshape": _view,
    "size": _size,
}
