"""Build the rank's part of the model from a Hugging Face architecture. megatron-core unmodified, weights not loaded.

`spec`: "local" is megatron-core's own layers with `PackedAttention` (CPU, and GPUs without Transformer Engine), "te" is
Transformer Engine's fused layers (GPU). "auto" takes te where CUDA is, for bfloat16: in float32 none of its fused
attention kernels runs, and what it falls back to holds the scores of all pairs of tokens of the longest segment.
"""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812

from siri_megatron.config import LearnerConfig, ModelConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.attention import PackedAttention, SegmentRotary
from siri_megatron.learner.mcore import (
    GPTModel,
    ModuleSpec,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    parallel_state,
)

Spec = Literal["local", "te"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """Where this rank's model lies: its GPU, or the CPU; under `with torch.device("meta")`, nowhere."""
    ambient = torch.get_default_device()
    on_gpu = torch.cuda.is_available() and ambient.type != "meta"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else ambient


def chosen_spec(config: ModelConfig) -> Spec:
    """Resolve `model.spec`.

    Raises:
        ConfigError: te is asked for, or chosen by a GPU, but cannot run here.
    """
    cuda, te = torch.cuda.is_available(), find_spec("transformer_engine") is not None
    wanted = config.spec if config.spec != "auto" else ("te" if cuda and config.dtype == "bfloat16" else "local")
    if wanted == "te" and not (cuda and te):
        raise ConfigError(f"model.spec={config.spec}, but CUDA available={cuda}, transformer_engine installed={te}",
                          rule="the te spec needs a GPU and Transformer Engine",
                          fix="model.spec=local, or install the gpu extra")
    return wanted


def transformer_config(arch: Architecture, layout: LearnerConfig, model: ModelConfig) -> Any:
    """megatron-core's TransformerConfig of an architecture in a layout."""
    dtype, fused = DTYPES[model.dtype], chosen_spec(model) == "te"
    wanted = {
        "num_layers": arch.layers, "hidden_size": arch.hidden, "num_attention_heads": arch.heads,
        "num_query_groups": arch.groups, "kv_channels": arch.head_dim, "ffn_hidden_size": arch.ffn,
        "normalization": "RMSNorm", "layernorm_epsilon": arch.norm_eps,
        "gated_linear_unit": True, "activation_func": F.silu,
        "add_bias_linear": False, "add_qkv_bias": arch.qkv_bias, "qk_layernorm": arch.qk_norm,
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "tensor_model_parallel_size": layout.tp, "pipeline_model_parallel_size": layout.pp,
        "params_dtype": dtype, "pipeline_dtype": dtype, "bf16": dtype is torch.bfloat16, "autocast_dtype": dtype,
        # perform_initialization stays on: without it, weights lack the attributes that say how they are split.
        "use_cpu_initialization": not torch.cuda.is_available(), "perform_initialization": True,
        "bias_activation_fusion": fused, "bias_dropout_fusion": fused, "apply_rope_fusion": fused,
        "masked_softmax_fusion": False, "persist_layer_norm": fused, "gradient_accumulation_fusion": False,
        "cross_entropy_loss_fusion": False,
        # Losses carry their denominator: megatron must neither average over micro-batches nor over ranks.
        "calculate_per_token_loss": True,
        # Micro-batches differ in shape; refused with the (unused) default MoE dispatcher.
        "variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall",
        "batch_p2p_comm": False, "deallocate_pipeline_outputs": True,
    }
    known = {item.name for item in fields(TransformerConfig)}  # versions differ in a few names
    return TransformerConfig(**{name: value for name, value in wanted.items() if name in known})


def build_model(arch: Architecture, config: Any, spec: Spec, *, context: int) -> list[Any]:
    """The model chunks of this rank (one: no virtual pipeline yet), on its device, in config.params_dtype."""
    model = GPTModel(
        config=config, transformer_layer_spec=_layer_spec(config, spec),
        vocab_size=arch.padded_vocab(config.tensor_model_parallel_size), max_sequence_length=context,
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True, share_embeddings_and_output_weights=arch.tied, position_embedding_type="rope",
        rotary_base=arch.rope_base, rope_scaling=arch.rope_factor is not None,
        rope_scaling_factor=arch.rope_factor or 1.0)
    if spec == "local":
        model.rotary_pos_emb = SegmentRotary(
            arch.head_dim, 1.0, rotary_base=arch.rope_base, rope_scaling=arch.rope_factor is not None,
            rope_scaling_factor=arch.rope_factor or 1.0, use_cpu_initialization=config.use_cpu_initialization)
    return [model.to(device=device(), dtype=config.params_dtype)]  # torch norms are made in float32 whatever the config


def _layer_spec(config: Any, spec: Spec) -> ModuleSpec:
    if spec == "te":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = PackedAttention
    return layer
