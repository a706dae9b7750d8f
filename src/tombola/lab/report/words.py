"""Numbers and names as a reader wants them, the same in the page, on the terminal and in the figures."""

from __future__ import annotations

from collections.abc import Iterable

from tombola.lab.report.rows import Stat

NBSP = "\N{NO-BREAK SPACE}"


def percent(fraction: float) -> str:
    """A fraction as a reader wants it: three significant digits, "4.57 %"."""
    return f"{100 * fraction:.3g}{NBSP}%" if fraction < 0.9995 else f"{100 * fraction:.4g}{NBSP}%"


def spread(accuracy: Stat, *, unit: str = f"{NBSP}%") -> str:
    """Mean and standard deviation of an accuracy in percent, "97.1 ± 0.3 %"."""
    around = "" if accuracy.sd is None else f"{NBSP}±{NBSP}{100 * accuracy.sd:.1f}"
    return f"{100 * accuracy.mean:.1f}{around}{unit}"


def count(number: float, noun: str) -> str:
    """A number with its noun, "1 seed", "240 epochs", "1,358 weights"."""
    return f"{number:,.6g}{NBSP}{noun}{'' if number == 1 else 's'}"


def listing(items: Iterable[object]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, final = [str(item) for item in items] or [""]
    return f"{', '.join(most)} and {final}" if most else final
