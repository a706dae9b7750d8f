"""Settings that every test shares: one thread, fixed seeds, hypothesis without deadlines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("tombola", deadline=None, derandomize=True, database=None)
settings.load_profile("tombola")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
