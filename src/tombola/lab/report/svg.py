"""Turning matplotlib's SVG into a piece of a web page: inlined, named, themed by the page's CSS variables, repeatable.

Matplotlib writes literal colours and page-wide ids. Here each colour that stands for a role (text, grid, series 1 …) is
that of the light page, which becomes `var(--role)` so that one figure is right on light and on dark; ids get a prefix,
so that several figures can live in one page; fonts are left to the page.
"""

from __future__ import annotations

import html
import io
import re
from importlib import resources
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tombola.lab.report.marks import Marks

ROLES = ("text", "muted", "grid", "dense", "s1", "s2", "s3", "s4", "s5")


def colours() -> str:
    """CSS that gives each role its colour, on light and on dark."""
    return (resources.files("tombola.lab.report") / "templates" / "colours.css").read_text(encoding="utf-8").strip()


INK = {role: re.findall(rf"--{role}: (#\w+)", colours())[0] for role in ROLES}
"""The colour of each role on light; no two are equal, and no figure uses these for anything else."""

_FINE = re.compile(r"(\.\d\d)\d+")  # hundredths of a point are enough for a screen

STYLE: dict[Any, Any] = {  # of `matplotlib.rc_context`
    "svg.hashsalt": "tombola",  # ids follow from the content, so equal inputs give equal bytes
    "svg.fonttype": "none",  # real text: readable by people and screen readers, in the page's own font
    "font.size": 11,
    "text.color": INK["text"],
    "axes.edgecolor": INK["muted"],
    "axes.labelcolor": INK["text"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["text"],
    "ytick.labelcolor": INK["text"],
    "legend.frameon": False,
    "text.parse_math": False,  # names are the user's: a dollar sign in one is a dollar sign
}


def inline(figure: Figure, prefix: str, *, title: str, marks: Marks | None = None) -> str:
    """`figure` as one `<svg>` element for a page.

    Args:
        figure: drawn under `rc_context(STYLE)` with colours from `INK`.
        prefix: put before every id; unique in the page.
        title: what the figure shows, for those who cannot see it (empty: the figure is decoration).
        marks: what its artists stand for; a method becomes their `data-method`.
    """
    svg = _themed(figure)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows what an <svg> is
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    if marks is not None:
        svg = re.sub(rf'<g id="{prefix}-(p\d+)">', lambda match: _part(marks, match[1]), svg)
    svg = _small(re.sub(rf'<g id="{prefix}-[^"]*">', "<g>", svg))  # nothing refers to groups
    label = f'role="img" aria-label="{html.escape(title)}"' if title else 'aria-hidden="true"'
    svg = re.sub(r'<svg\s+width="[^"]*"\s+height="[^"]*"', f"<svg {label}", svg, count=1)
    return re.sub(r'\sversion="1.1"', "", svg, count=1)


def _small(svg: str) -> str:
    """The same picture in half the bytes: without what neither shows nor is referred to."""
    svg = re.sub(r"\n\s+", "\n", svg)
    svg = re.sub(r'<path d="[^"]*" style="fill: none"/>| transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'(?<=\s)(?:d|x|y|transform)="[^"]*"', lambda match: _FINE.sub(r"\1", match[0]), svg)
    svg = re.sub(r"(?<=\d) \n([LCQz])", r"\1", svg)  # within paths
    before = ""
    while svg != before:
        before, svg = svg, re.sub(r"<g>\s*(<(?:use|path|text)\b[^<]*(?:/>|</text>))?\s*</g>", r"\1", svg)
    return re.sub(r"\n\n+", "\n", svg)


def _part(marks: Marks, gid: str) -> str:
    method = f' data-method="{html.escape(marks.methods[gid])}"' if marks.methods[gid] else ""
    title = f"<title>{html.escape(marks.tips[gid])}</title>" if marks.tips[gid] else ""
    return f"<g{method}>{title}"


def standalone(figure: Figure, *, title: str) -> str:
    """`figure`, drawn as for `inline`, as an SVG file that follows the viewer's light or dark theme on its own."""
    style = f"<style>{colours()}\nsvg {{ font-family: system-ui, sans-serif; }}</style>"
    back = '<rect width="100%" height="100%" rx="6" style="fill: var(--page)"/>'
    svg = re.sub(
        r"<svg\b([^>]*)>",
        rf'<svg role="img"\1>\n<title>{html.escape(title)}</title>\n{style}\n{back}',
        _themed(figure),
        count=1,
    )
    return f"{svg}\n"


def _themed(figure: Figure) -> str:
    """The `<svg>` element as matplotlib writes it, with the page's fonts and a CSS variable for each role's colour."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for role, colour in INK.items():
        svg = svg.replace(colour, f"var(--{role})")
    return re.sub(r"\n\s*\n", "\n", svg).strip()
