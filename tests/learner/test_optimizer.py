"""Which AdamW a learner has. What it computes: test_distributed_optimizer, test_invariance."""

from __future__ import annotations

import pytest
import torch

from siri_megatron.errors import ConfigError
from siri_megatron.learner import mcore
from siri_megatron.learner.optimizer import check_adam

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("module", ["transformer_engine.pytorch.optimizers.fused_adam", "apex.optimizers.fused_adam"])
def test_a_fused_adam_without_a_gpu_is_refused_before_the_first_step(module: str) -> None:
    fused = type("FusedAdam", (), {"__module__": module})
    with pytest.raises(ConfigError) as refused:
        check_adam(fused, CPU)
    assert f"{module}.FusedAdam" in refused.value.what
    assert "`make setup`" in refused.value.fix
    check_adam(fused, GPU)


def test_the_one_that_megatron_takes_here_runs_here() -> None:
    assert mcore.Adam is torch.optim.AdamW
    check_adam(mcore.Adam, CPU)
