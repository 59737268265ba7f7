"""What is refused is refused before any process group is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from models import write_model

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.groups import start_groups
from siri_megatron.learner.learner import Learner
from siri_megatron.learner.settings import LearnerSettings


@pytest.mark.parametrize("layout", [{"tp": 3}, {"vpp": 2}, {"sequence_parallel": True}, {"pp": 2, "vpp": 2}])
def test_a_layout_that_does_not_fit_makes_no_group(tmp_path: Path, layout: dict[str, Any]) -> None:
    given = LearnerSettings(ModelConfig(path=write_model(tmp_path)), LearnerConfig(**layout), OptimizerConfig(lr=1e-3),
                            AlgorithmConfig(), 1.0, "packed", 160, 64, 1)
    with pytest.raises(ConfigError, match="nearest layout"):
        Learner(given)
    assert not dist.is_initialized()


def test_one_process_a_rank() -> None:
    with pytest.raises(ConfigError, match=r"tp x pp x dp x cp = 2 x 3 x 1 x 1 = 6, but 1 learners were started"):
        start_groups(LearnerConfig(tp=2, pp=3), None, 1)
    assert not dist.is_initialized()
