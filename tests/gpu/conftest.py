"""These tests need an NVIDIA GPU and PyTorch: `make gpu` runs them."""

import os

import pytest
from tuning_operator.local.gpus import visible_gpus


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail, rather than skip, where nothing can be shown."""
    del items
    if not visible_gpus(os.environ):
        pytest.exit("tests/gpu needs an NVIDIA GPU, and nvidia-smi finds none on this machine", returncode=1)
