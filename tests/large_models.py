"""Large models without memory: every rank of a layout, one after another in this process, on the meta device.

torch's fake process-group backend lets one process be any rank of any world: megatron-core makes its real groups and
builds the real GPTModel, and a collective returns at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from siri_megatron.config import LearnerConfig, ModelConfig
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.layout import check_layout
from siri_megatron.learner.mcore import model_parallel_cuda_manual_seed, parallel_state
from siri_megatron.learner.model import build_model, transformer_config

CONTEXT = 16384

# The fields of the published config.json files, and the number of parameters that the model cards print.
R1_DISTILL_QWEN_7B = {
    "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
    "use_sliding_window": False, "tie_word_embeddings": False}
QWEN3_4B = {
    "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True}
LLAMA_3_3_70B = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 28672, "head_dim": 128,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}}


@dataclass(frozen=True)
class Case:
    """A model in a layout."""

    config: dict[str, Any]
    layout: LearnerConfig
    parameters: int
    """Of the whole model."""


CASES = {
    "7b-tp4-pp4": Case(R1_DISTILL_QWEN_7B, LearnerConfig(tp=4, pp=4), 7_615_616_512),
    "4b-tied-tp8-pp4": Case(QWEN3_4B, LearnerConfig(tp=8, pp=4), 4_022_468_096),
    "4b-tied-tp2-pp4-dp2": Case(QWEN3_4B, LearnerConfig(tp=2, pp=4, dp=2), 4_022_468_096),
    "70b-tp8-pp8-dp2": Case(LLAMA_3_3_70B, LearnerConfig(tp=8, pp=8, dp=2), 70_553_706_496),
    "70b-tp8-pp4-vpp4-sp": Case(LLAMA_3_3_70B, LearnerConfig(tp=8, pp=4, vpp=4, sequence_parallel=True),
                                70_553_706_496),
}


@dataclass(frozen=True)
class Built:
    """One rank's part of the model; parameters on the meta device."""

    tp: int
    pp: int
    dp: int
    chunks: list[dict[str, Any]]
    """For each model chunk: name -> parameter."""
    exported: list[tuple[str, tuple[int, ...]]]
    """What `export_tensors` yields on this rank; empty where it was not asked."""


def build_every_rank(case: Case, *, export_from_tp: int = 0) -> list[Built]:
    """All ranks in world order. Ranks of tensor-parallel index `export_from_tp` also run the export."""
    arch = check_layout(case.config, case.layout, context=CONTEXT)
    return [build_rank(arch, case.layout, rank, export_from_tp) for rank in range(case.layout.world_size)]


def build_rank(arch: Architecture, layout: LearnerConfig, rank: int, export_from_tp: int) -> Built:
    from siri_megatron.weights.export import export_tensors
    with pretended_rank(layout, rank), torch.device("meta"):
        config = transformer_config(arch, layout, ModelConfig(path=Path("none"), dtype="bfloat16"))
        chunks = build_model(arch, config, "local", context=CONTEXT)
        tp, pp, dp = (parallel_state.get_tensor_model_parallel_rank(),
                      parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_data_parallel_rank())
        exported = [(name, tuple(tensor.shape)) for name, tensor in export_tensors(chunks, arch)
                    ] if tp == export_from_tp and dp == 0 else []
        return Built(tp, pp, dp, [dict(chunk.named_parameters()) for chunk in chunks], exported)


@contextmanager
def pretended_rank(layout: LearnerConfig, rank: int) -> Iterator[None]:
    """Be this rank of the layout's world, in megatron-core's own groups."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        parallel_state.initialize_model_parallel(
            layout.tp, layout.pp, virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
            context_parallel_size=layout.cp, create_gloo_process_groups=False)
        model_parallel_cuda_manual_seed(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
