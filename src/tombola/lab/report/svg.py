"""Turning matplotlib's SVG into a piece of a web page: inlined, named, themed by the page's CSS variables, repeatable.

Matplotlib writes literal colours and page-wide ids. Here each colour that stands for a role (text, grid, series 1 …) is
a sentinel, which becomes `var(--role)` so that one figure is right on light and on dark; ids get a prefix, so that
several figures can live in one page; fonts are left to the page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

ROLES = ("text", "muted", "grid", "dense", "s1", "s2", "s3", "s4", "s5")
INK = {role: f"#{0x10203 + 0x10101 * i:06x}" for i, role in enumerate(ROLES)}
"""The sentinel colour of each role; no figure uses these for anything else."""

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


def inline(figure: Figure, prefix: str, *, title: str, points: Mapping[str, str] | None = None) -> str:
    """`figure` as one `<svg>` element for a page.

    Args:
        figure: drawn under `rc_context(STYLE)` with colours from `INK`.
        prefix: put before every id; unique in the page.
        title: what the figure shows, for those who cannot see it (empty: the figure is decoration).
        points: text to show when pointing at an artist, by the artist's gid.
    """
    svg = _themed(figure)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows what an <svg> is
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for gid, text in (points or {}).items():
        svg = svg.replace(f'<g id="{prefix}-{gid}">', f'<g id="{prefix}-{gid}"><title>{html.escape(text)}</title>')
    label = f'role="img" aria-label="{html.escape(title)}"' if title else 'aria-hidden="true"'
    svg = re.sub(r'<svg\s+width="[^"]*"\s+height="[^"]*"', f"<svg {label}", svg, count=1)
    return re.sub(r'\sversion="1.1"', "", svg, count=1)


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


def colours() -> str:
    """CSS that gives each role its colour, on light and on dark."""
    return (resources.files("tombola.lab.report") / "templates" / "colours.css").read_text(encoding="utf-8").strip()


def _themed(figure: Figure) -> str:
    """The `<svg>` element as matplotlib writes it, with the page's fonts and a CSS variable for each role's colour."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for role, sentinel in INK.items():
        svg = svg.replace(sentinel, f"var(--{role})")
    return re.sub(r"\n\s*\n", "\n", svg).strip()
