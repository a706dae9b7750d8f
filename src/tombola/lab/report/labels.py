"""Labels beside the ends of curves, each where the least is in its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

FONT = 9.0  # points
SIDES = [(1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1), (1, 2), (1, -2), (-1, 2), (-1, -2)]
"""Where a label may be, from the end of its curve; the first are preferred."""
STEP = 2.0  # points between two samples of a curve


@dataclass(frozen=True)
class EndLabel:
    """A curve and its error bars (in data coordinates), and the text to put beside its last point."""

    path: Sequence[tuple[float, float]]
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]]
    text: str
    ink: str


def figure_of(axes: Axes) -> Figure:
    """The figure that holds `axes`."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> list[Annotation]:
    """Put each label beside its end: within the axes, and over as little as possible of the curves and other labels.

    Call it when the limits of the axes are final. Returns them in the same order.
    """
    figure = figure_of(axes)
    figure.draw_without_rendering()  # now the layout is known
    scale = 72 / figure.dpi

    def points(line: Sequence[tuple[float, float]]) -> np.ndarray:
        return np.asarray(axes.transData.transform(np.asarray(line))) * scale

    lines = [line for label in labels for line in (label.path, *label.bars)]
    taken = np.concatenate([np.empty((0, 2)), *(_samples(points(line)) for line in lines)])
    x0, y0, x1, y1 = (edge * scale for edge in axes.get_window_extent().extents)
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    put = []
    for label in labels:
        end = points(label.path)[-1]
        size = np.array([0.62 * len(label.text), 1.1]) * FONT
        candidates = []
        for rank, (right, up) in enumerate(SIDES):
            away = (right * (size[0] / 2 + 6), up * (1.05 * size[1] if right else size[1] / 2 + 5))
            middle = end + np.array(away)
            low, high = middle - size / 2, middle + size / 2
            hidden = int(np.all((taken >= low) & (taken <= high), axis=1).sum())
            outside = bool(np.any(low < (x0, y0)) or np.any(high > (x1, y1)))
            collisions = sum(bool(np.all((low < top) & (high > bottom))) for bottom, top in boxes)
            candidates.append((100 * (collisions + outside) + hidden, rank, middle))
        *_, middle = min(candidates, key=lambda candidate: candidate[:2])
        boxes.append((middle - size / 2, middle + size / 2))
        offset = middle - end
        annotation = axes.annotate(
            label.text,
            label.path[-1],
            xytext=(float(offset[0]), float(offset[1])),
            textcoords="offset points",
            fontsize=FONT,
            color=label.ink,
            ha="center",
            va="center",
        )
        put.append(annotation)
    return put


def _samples(path: np.ndarray) -> np.ndarray:
    """Points of a polyline, at most `STEP` apart."""
    parts = [path[-1:]]
    for start, end in pairwise(path):
        count = 1 + int(np.hypot(*(end - start)) / STEP)
        parts.append(start + (end - start) * np.linspace(0, 1, count, endpoint=False)[:, None])
    return np.concatenate(parts)
