"""What an example is made of: noted in a ticket, so that one can be made up where the data are not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tombola.lab.data import Data, Dataset, Loaders, Tokens
from tombola.lab.errors import LabError

KEY = "input_values"
"""In a ticket's provenance: the dtype of its network's inputs, and of integers from which to below which they go."""
_FLOATS = {"dtype": "float32"}
"""What is meant where nothing is noted."""


def values_of(data: Dataset) -> dict[str, Any]:
    """What the inputs of ``data`` are, as plain data for a ticket's provenance; empty for float32."""
    said: dict[str, Any] = _FLOATS
    if isinstance(data, Tokens):
        said = {"dtype": "int64", "range": [0, data.classes]}
    elif isinstance(data, (Data, Loaders)):
        x, _ = next(iter(data.test()))
        said = {"dtype": str(x.dtype).removeprefix("torch.")}
        if not x.dtype.is_floating_point:
            said["range"] = [int(x.min()), int(x.max()) + 1]
    return {} if said == _FLOATS else {KEY: said}


def example(said: Mapping[str, Any], batch: int) -> Tensor:
    """A batch that a network takes: numbers drawn at random, the same each time.

    Args:
        said: the provenance of its ticket, or what a file that was made of it says.
        batch: examples in it.

    Raises:
        LabError: what it says of its inputs makes no sense.
    """
    generator, shape = torch.Generator().manual_seed(0), (batch, *said["input_shape"])
    usual: dict[str, Any] = _FLOATS
    if str(said.get("data")).partition("/")[0] == "text":  # tickets did not always say
        usual = {"dtype": "int64", "range": [0, said["classes"]]}
    values = said.get(KEY, usual)
    try:
        dtype = getattr(torch, values["dtype"])
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        low, high = values["range"]
        return torch.randint(low, high, shape, generator=generator).to(dtype)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LabError(f"its {KEY} are damaged: {values!r} ({' '.join(str(error).split())})") from error
