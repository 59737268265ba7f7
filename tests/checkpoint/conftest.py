"""The model that most tests of checkpoints train."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import write_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "qwen2_tied")
