"""The colours of the figures: each pair can be told apart, also by colour-blind readers, on light and on dark."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from tombola.lab.report.svg import ROLES, colours

# What dichromats see, as a matrix on linear RGB (Machado, Oliveira & Fernandes 2009, table 1, severity 1).
VISION = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = RGB_TO_XYZ.sum(axis=1)
SERIES = [role for role in ROLES if role == "dense" or re.fullmatch(r"s\d", role)]


def themes() -> list[dict[str, str]]:
    light, dark = colours().split("@media")
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in (light, dark)]


def lab(colour: str, vision: str) -> np.ndarray:
    """CIELAB of a colour as someone sees it."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = RGB_TO_XYZ @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lab_of_known_colours() -> None:
    assert lab("#ffffff", "trichromat") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000", "trichromat") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_each_pair_of_series_is_apart(theme: int, vision: str) -> None:
    seen = {role: lab(themes()[theme][role], vision) for role in SERIES}
    assert len(seen) == 6
    distances = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(seen, 2)}
    assert min(distances.values()) > 15, min(distances, key=distances.__getitem__)
