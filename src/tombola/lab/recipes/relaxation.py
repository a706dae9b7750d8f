"""Continuous Sparsification, figure 1: the relaxation σ(βs) of a binary mask while β rises. Nothing is trained.

Savarese, Silva & Maire, arXiv 1912.04427. The curves come from the method's own code: its mask for scores from −1 to 1
at the beginning, at each quarter and at the end of a round. Departs from the paper in: which β are drawn, as the
figure's are not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from tombola.files import write_atomically
from tombola.lab.errors import LabError
from tombola.lab.places import made
from tombola.lab.recipes.base import Recipe
from tombola.lab.report.svg import INK, STYLE, standalone
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.protocol import Moment

METHOD = ContinuousSparsification()
STEPS, POINTS = 4, 401


def curves() -> tuple[torch.Tensor, dict[float, torch.Tensor]]:
    """Scores (POINTS,), and temperature β -> mask (POINTS,) at each quarter of a round."""
    scores, found = torch.linspace(-1, 1, POINTS), {}
    for step in range(STEPS + 1):
        moment = Moment(step=step, steps=STEPS, steps_per_epoch=None, weights=POINTS)
        mask = METHOD.mask(scores, moment, generator=torch.Generator(), out=torch.empty(POINTS))
        found[METHOD.temperature(moment)] = mask
    return scores, found


def draw(out: Path) -> Sequence[Path]:
    """Write relaxation.svg, .png and .csv into ``out``.

    Raises:
        LabError: nothing can be written there.
    """
    scores, masks = curves()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["score", *(f"mask_at_beta_{beta:.4g}" for beta in masks)])
    writer.writerows(zip(scores.tolist(), *(mask.tolist() for mask in masks.values()), strict=True))
    with mpl.rc_context(STYLE):
        svg = standalone(_figure(scores, masks, [INK[f"s{place}"] for place in range(1, 6)]), title="σ(βs) against s")
    picture = io.BytesIO()
    _figure(scores, masks, [f"C{place}" for place in range(5)]).savefig(picture, format="png", dpi=200)
    contents = {
        "relaxation.svg": svg.encode(),
        "relaxation.png": picture.getvalue(),
        "relaxation.csv": table.getvalue().encode(),
    }
    made(out)
    try:
        for name, content in contents.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise LabError(f"{out}: cannot be written to: {error.strerror}; choose another folder with --out") from None
    return [out / name for name in contents]


def _figure(scores: torch.Tensor, masks: dict[float, torch.Tensor], inks: Sequence[str]) -> Figure:
    figure = Figure(figsize=(5.2, 3.7), layout="constrained")
    axes = figure.add_subplot()
    for (beta, mask), ink in zip(masks.items(), inks, strict=True):
        axes.plot(scores, mask, color=ink, label=f"β = {beta:.3g}")
    axes.set(xlabel="score s", ylabel="mask σ(βs)")
    axes.legend()
    return figure


RECIPE = Recipe(
    name="cs-figure-1",
    paper="Savarese et al. 2020",
    where="figure 1",
    about="The soft mask σ(βs) against the score s at each quarter of a round, as the code computes it.",
    departures="Which β the figure draws is not known.",
    data="none",
    model="none",
    methods="CS",
    draw=draw,
)
