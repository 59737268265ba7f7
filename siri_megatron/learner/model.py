"""Build the rank's part of the model from a Hugging Face architecture. megatron-core unmodified, weights not loaded.

`spec`: "local" is megatron-core's own layers with `PackedAttention` (CPU, and GPUs without Transformer Engine), "te" is
Transformer Engine's fused layers (GPU). "auto" takes te where CUDA is, for bfloat16: in float32 none of its fused
attention kernels runs, and what it falls back to holds the scores of all pairs of tokens of the longest segment.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812

from siri_megatron.config import LearnerConfig, ModelConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.attention import PackedAttention
from siri_megatron.learner.mcore import (
    GPTModel,
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    parallel_state,
)
from siri_megatron.learner.rotary import SegmentRotary

Spec = Literal["local", "te"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {}, "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}}


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
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "softmax_scale": arch.softmax_scale,
        "tensor_model_parallel_size": layout.tp, "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "context_parallel_size": layout.cp, "sequence_parallel": layout.sequence_parallel,
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
    wanted |= RECOMPUTE[layout.recompute]
    known = {item.name for item in fields(TransformerConfig)}  # versions differ in a few names
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*core_attn.*fused")  # recompute=selective was chosen knowingly
        return TransformerConfig(**{name: value for name, value in wanted.items() if name in known})


def build_model(arch: Architecture, config: Any, spec: Spec, *, context: int) -> list[Any]:
    """The model chunks of this rank (several with a virtual pipeline), on its device, in config.params_dtype."""
    count = config.virtual_pipeline_model_parallel_size
    return [_build_chunk(arch, config, spec, context, number) for number in (range(count) if count else [None])]


def _build_chunk(arch: Architecture, config: Any, spec: Spec, context: int, number: int | None) -> Any:
    """number: which of the rank's virtual stages; None: it has only one stage."""
    place = {"ignore_virtual": False, "vp_stage": number}
    model = GPTModel(
        config=config, transformer_layer_spec=_block_spec(config, spec), vp_stage=number,
        vocab_size=arch.padded_vocab(config.tensor_model_parallel_size), max_sequence_length=context,
        pre_process=parallel_state.is_pipeline_first_stage(**place),
        post_process=parallel_state.is_pipeline_last_stage(**place),
        parallel_output=True, share_embeddings_and_output_weights=arch.tied, position_embedding_type="rope",
        rotary_base=arch.rope.base)
    model.rotary_pos_emb = SegmentRotary(arch.rope, arch.head_dim, config)
    return model.to(device=device(), dtype=config.params_dtype)  # torch norms are made in float32 whatever the config


def _block_spec(config: Any, spec: Spec) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of a chunk; its last norm is only built where the model ends."""
    if spec == "te":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    parts, attention = layer.submodules, layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    chunks = config.pipeline_model_parallel_size * (config.virtual_pipeline_model_parallel_size or 1)
    return TransformerBlockSubmodules(layer_specs=[layer] * (config.num_layers // chunks), layer_norm=Norm)


class Norm(torch.nn.RMSNorm):
    """RMSNorm of the local spec. megatron-core's refuses sequence parallelism.

    There each tensor-parallel rank sees a part of the tokens, hence holds a part of the weight's gradient; the mark on
    the weight makes `finalize_model_grads` sum the parts.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel
