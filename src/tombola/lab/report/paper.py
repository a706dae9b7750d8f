"""Every figure of a report as files for a paper: PDF, SVG and PNG, the same bytes for the same runs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tombola.lab.report.figures import handle, name
from tombola.lab.report.panels import Look, layers, panels
from tombola.lab.report.rows import Summary
from tombola.lab.report.svg import STYLE

FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"metadata": {"Software": None}, "dpi": 300},
}
PRINTED: dict[Any, Any] = STYLE | {"svg.fonttype": "path", "pdf.fonttype": 42, "font.size": 10}
"""As on the light page; no reader of the file needs the fonts."""
LETTER, MARK = 0.075, 0.6  # inches that a letter of a legend and the mark before it take


def pictures(summary: Summary) -> Iterator[tuple[str, Look]]:
    """Each figure, and the name of its files without what tells the format: model, data and view."""
    taken: set[str] = set()
    for task in summary.tasks:
        for panel in [*panels(task, summary.parts), layers(task)]:
            for look in panel.looks:
                yield _free(_plain(f"{name(task)}-{look.key}"), taken), look


def files(look: Look) -> Iterator[tuple[str, bytes]]:
    """A figure in each of `FORMATS`."""
    figure = _drawn(look)
    for suffix, options in FORMATS.items():
        buffer = io.BytesIO()
        with mpl.rc_context(PRINTED):
            figure.savefig(buffer, format=suffix, **options)
        yield suffix, buffer.getvalue()


def _drawn(look: Look) -> Figure:
    with mpl.rc_context(PRINTED):
        longest = max((len(entry.text) for entry in look.legend), default=0)
        columns = max(1, min(2, int(look.size[0] / (MARK + LETTER * longest))))
        rows = -(-len(look.legend) // columns)
        figure = Figure(figsize=(look.size[0], look.size[1] + 0.2 * rows), layout="constrained")
        look.draw(figure)
        if look.legend:
            marks = [handle(entry) for entry in look.legend]
            texts = [entry.text for entry in look.legend]
            figure.legend(marks, texts, loc="outside lower center", ncols=columns, fontsize=9)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # as it is now, in all formats
    return figure


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _free(stem: str, taken: set[str]) -> str:
    """The name, or with a number if it is taken."""
    number = 2
    found = stem
    while found.lower() in taken:
        found, number = f"{stem}-{number}", number + 1
    taken.add(found.lower())
    return found
