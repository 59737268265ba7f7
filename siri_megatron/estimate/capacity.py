"""The memory model as what limits micro-batches (`batching.lengths.capacity_at`)."""

from __future__ import annotations

from siri_megatron.batching.lengths import MicroBytes
from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.activations import Mode, Spec
from siri_megatron.estimate.memory import learner_memory
from siri_megatron.learner.architecture import Architecture


def micro_bytes(arch: Architecture, layout: LearnerConfig, dtype: str, *, spec: Spec, mode: Mode,
                algorithm: AlgorithmConfig) -> MicroBytes:
    """What full micro-batches take on the worst rank, with as many in flight as the pipeline ever has."""
    full = 2 * layout.pp * layout.vpp

    def takes(tokens: int, longest: int) -> int:
        ranks = learner_memory(arch, layout, dtype, spec=spec, mode=mode, tokens=tokens, longest=longest,
                               micro_batches=full, algorithm=algorithm)
        return max(rank.micro_batches for rank in ranks)
    return takes
