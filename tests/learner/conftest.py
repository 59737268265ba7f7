"""Fixtures of the learner's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_runs import LAYERS
from models import write_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen2 of as many layers as the layouts need."""
    return write_model(tmp_path_factory.mktemp("model"), "qwen2_tied", num_hidden_layers=LAYERS)
