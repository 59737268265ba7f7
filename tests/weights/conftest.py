"""The shared engines leave this directory as they came: other tests rely on the weights that they started with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_fleet import EngineFleet, alone


@pytest.fixture(scope="module")
def engines(engines: EngineFleet) -> Iterator[EngineFleet]:
    """The session's engines; after a module they have the model's own weights again, under the version of before."""
    from test_push import ModelSource
    from transformers import AutoModelForCausalLM

    from siri_megatron.weights.push import WeightPush

    pushed = engines.run_dir.pushed
    before, version = pushed.read_bytes() if pushed.exists() else None, version_of(engines)
    yield engines
    model = AutoModelForCausalLM.from_pretrained(engines.model_dir, dtype=torch.float32)
    push = WeightPush(engines.with_push("shm"), engines.run_dir, ModelSource(model), alone)
    push.push(version)
    push.close()
    if before is None:
        pushed.unlink()
    else:
        pushed.write_bytes(before)


def version_of(engines: EngineFleet) -> str:
    return str(engines.get(0, "/weight_info").json()["weight_version"])
