"""Ways to reach an asked density with Continuous Sparsification, beside each other: what was chosen, and what was not.

    python benchmarks/density_controllers.py [--seeds 0 1 2] [--write]

Networks, data, search and retraining are those of ``density_control.py``; every way ends with exactly the asked count.
They differ in what leads there:

* offset: one number is taken from all scores, so that a falling ceiling is kept (``tombola.methods.density``);
* offset for each layer: the same in each layer apart, so that all end at the asked density;
* price: dual ascent, λ rises while the density is above the same ceiling, and falls below it; s₀, scores and loss do
  the rest;
* nothing but the end: the largest scores are kept at the last step;
* offset, settled at other shares of the steps than 70 %.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from density_control import NETS, SCORE_OPTIMIZER, SEARCH_EPOCHS, found, mean_sd, retrained
from torch import Tensor

import tombola
from tombola import ContinuousSparsification
from tombola.methods import density as controller
from tombola.methods.protocol import Moment

DENSITIES = (0.2, 0.05, 0.02)
RATES = (0.1, 1.0, 10.0)  # of dual ascent, in prices of a mask that is 1 everywhere for each steering
SHARES = (0.3, 0.5, 0.9, 1.0)  # after which the ceiling is the asked density


@dataclass(frozen=True, kw_only=True)
class LayerByLayer(ContinuousSparsification):
    """Each layer at the asked density."""

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        for name, score in scores.items():
            super().adjust({name: score}, moment)


@dataclass(frozen=True, kw_only=True)
class AtTheEnd(ContinuousSparsification):
    """The loss alone, until the last step."""

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        if moment.step == moment.steps:
            super().adjust(scores, moment)


@dataclass(frozen=True, kw_only=True)
class Priced(ContinuousSparsification):
    """λ by dual ascent on the density, never below 0; the price is that of the mean of the mask."""

    rate: float
    price: list[float] = field(default_factory=lambda: [0.0])

    def _price(self, moment: Moment) -> float:
        return self.price[0] / moment.weights

    def adjust(self, scores: Mapping[str, Tensor], moment: Moment) -> None:
        assert isinstance(self.density, float)
        if moment.step == moment.steps:
            super().adjust(scores, moment)
        elif moment.step % max(1, moment.steps // controller.TIMES) == 0:
            now = self.kept(scores, seed=0).density
            gap = now - controller.ceiling(self.density, moment)
            self.price[0] = max(0.0, self.price[0] + self.rate * gap)


@contextmanager
def settled(share: float) -> Iterator[None]:
    """Inside it the ceiling is the asked density after that share of the steps."""
    before, controller.SETTLED = controller.SETTLED, share
    try:
        yield
    finally:
        controller.SETTLED = before


Make = Callable[[float], ContinuousSparsification]

WAYS: dict[str, tuple[Make, float]] = {  # and the share of the steps
    "offset (chosen)": (lambda d: ContinuousSparsification(density=d, score_optimizer=SCORE_OPTIMIZER), 0.7),
    "offset for each layer": (lambda d: LayerByLayer(density=d, score_optimizer=SCORE_OPTIMIZER), 0.7),
    **{
        f"price, at a rate of {rate:g}": (
            lambda d, rate=rate: Priced(density=d, rate=rate, score_optimizer=SCORE_OPTIMIZER),
            0.7,
        )
        for rate in RATES
    },
    "nothing but the end": (lambda d: AtTheEnd(density=d, score_optimizer=SCORE_OPTIMIZER), 0.7),
    **{f"offset, settled at {share:.0%}": (lambda d: WAYS["offset (chosen)"][0](d), share) for share in SHARES},
}


def accuracies(net: str, way: str, seed: int) -> dict[float, float]:
    """Density -> accuracy in % of the retrained ticket."""
    make, share = WAYS[way]
    reached = {}
    for density in DENSITIES:
        with settled(share):
            ticket = found(net, make(density), seed)
        reached[density] = retrained(net, ticket, seed)
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/density_controllers.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "round 1:")  # scores undecided
    begin = time.perf_counter()
    head = [
        "# Ways to an asked density",
        "",
        f"`python benchmarks/{Path(__file__).name} --seeds {' '.join(map(str, given.seeds))} --write`",
        "",
        f"tombola {tombola.__version__}, torch {torch.__version__}, {platform.machine()}, {given.threads} thread(s); "
        f"{SEARCH_EPOCHS} epochs of search; accuracy of the retrained ticket, % (mean ± sd over seeds; at the right "
        "its difference to the offset over all networks, paired by network and seed, mean ± standard error).",
        "",
    ]
    results: dict[str, dict[str, list[dict[float, float]]]] = {}
    for way in WAYS:
        print(way, flush=True)
        results[way] = {net: [accuracies(net, way, seed) for seed in given.seeds] for net in NETS}
    chosen = results["offset (chosen)"]
    lines = []
    for density in DENSITIES:
        lines += [
            f"## Density {density}",
            "",
            f"| way | {' | '.join(NETS)} | − offset |",
            "|---" * (len(NETS) + 2) + "|",
        ]
        for way, nets in results.items():
            cells = [mean_sd([seed[density] for seed in nets[net]]) for net in NETS]
            gaps = [
                mine[density] - its[density] for net in NETS for mine, its in zip(nets[net], chosen[net], strict=True)
            ]
            error = statistics.stdev(gaps) / math.sqrt(len(gaps))
            cells.append("" if nets is chosen else f"{statistics.mean(gaps):+.2f} ± {error:.2f}")
            lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"{(time.perf_counter() - begin) / 60:.0f} minutes.")
    print("\n".join(lines))
    if given.write:
        path = Path(__file__).parent / "results" / "density_controllers.md"
        path.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
