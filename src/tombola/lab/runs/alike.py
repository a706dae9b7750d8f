"""Which runs may be trained as one: those whose networks, and the steps that train them, are of one build."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

from tombola.lab.config import RunConfig


def groups(configs: Sequence[RunConfig], size: int, *, jobs: int) -> list[list[RunConfig]]:
    """Runs that one process is to train at once, at most ``size`` of them; each run is in one group at most.

    Those of a group are of about equal length, and groups of about equal size: for each of ``jobs`` processes as many.
    """
    families: dict[Hashable, list[RunConfig]] = {}
    for config in {config.folder_name: config for config in configs}.values():
        if not (config.sparse or config.compile):
            families.setdefault(_build(config), []).append(config)
    found = []
    for family in families.values():
        family.sort(key=lambda config: -config.total_epochs)
        parts = jobs * -(-len(family) // (jobs * size))
        cuts = [len(family) * part // parts for part in range(parts + 1)]
        found += [family[begin:end] for begin, end in pairwise(cuts) if end - begin > 1]
    return found


def _build(config: RunConfig) -> Hashable:
    """What runs have in common whose steps can be computed as one."""
    return (
        config.data, config.inputs, config.model, config.width, config.batch_size, config.precision,
        config.channels_last, config.label_smoothing,
    )  # fmt: skip
