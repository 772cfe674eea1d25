"""Every test of a network starts from the same seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights and inputs, the same in every run."""
    torch.manual_seed(0)
