"""Schedules, by hand."""

from __future__ import annotations

import pytest

from tombola.schedules import cubic, exponential, staircase


def test_exponential() -> None:
    at = exponential(1.0, 16.0, 4)
    assert [at(step) for step in range(6)] == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 16.0])
    assert exponential(8.0, 1.0, 3)(1) == pytest.approx(4.0)


def test_cubic() -> None:
    # left is (1 − t/4)³: 1, 27/64, 1/8, 1/64, 0 of the way from 0.2 to 1
    at = cubic(1.0, 0.2, 4)
    assert [at(step) for step in range(6)] == pytest.approx([1.0, 0.2 + 0.8 * 27 / 64, 0.3, 0.2125, 0.2, 0.2])


def test_cubic_that_begins_late() -> None:
    at = cubic(0.0, 0.8, 12, begin=10)
    assert [at(step) for step in (0, 9, 10, 11, 12, 13)] == pytest.approx([0.0, 0.0, 0.0, 0.7, 0.8, 0.8])


def test_staircase() -> None:
    at = staircase(exponential(1.0, 8.0, 3), 5)
    assert [at(step) for step in (0, 4, 5, 9, 10, 15, 99)] == pytest.approx([1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0])
