"""What the `config.json` of published models says of their architecture, and how many parameters they have.

Facts only, in transformers 4's spelling as published. Fields that say nothing of the architecture are left out; fields
that look as if they did (a `sliding_window` that is not used, `use_mrope`) are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A model on the hub."""

    config: dict[str, Any]
    parameters: int
    """A tied output layer not counted."""


def _sizes(hidden: int, ffn: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": groups, "hidden_act": "silu", "attention_dropout": 0.0}


def _qwen2(*sizes: int, parameters: int, **fields: Any) -> Published:
    common = {"model_type": "qwen2", "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
              "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 32768,
              "max_window_layers": sizes[2], "tie_word_embeddings": True}
    return Published(common | _sizes(*sizes) | fields, parameters)


def _qwen3(*sizes: int, parameters: int, tied: bool = True) -> Published:
    common = {"model_type": "qwen3", "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
              "rope_scaling": None, "max_position_embeddings": 40960, "head_dim": 128, "attention_bias": False,
              "use_sliding_window": False, "sliding_window": None, "max_window_layers": sizes[2],
              "tie_word_embeddings": tied}
    return Published(common | _sizes(*sizes), parameters)


def _llama3(*sizes: int, parameters: int, factor: float, **fields: Any) -> Published:
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}
    common = {"model_type": "llama", "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
              "rope_scaling": rope, "max_position_embeddings": 131072, "attention_bias": False, "mlp_bias": False,
              "pretraining_tp": 1, "tie_word_embeddings": False}
    return Published(common | _sizes(*sizes) | fields, parameters)


def _smollm2(*sizes: int, parameters: int, rope_theta: int = 100000, **fields: Any) -> Published:
    common = {"model_type": "llama", "vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": rope_theta,
              "rope_scaling": None, "max_position_embeddings": 8192, "attention_bias": False, "mlp_bias": False,
              "pretraining_tp": 1, "tie_word_embeddings": True}
    return Published(common | _sizes(*sizes) | fields, parameters)


_DISTILLED = {"rope_theta": 10000, "max_position_embeddings": 131072, "sliding_window": 4096, "use_mrope": False,
              "tie_word_embeddings": False}
_SMOL = {"rope_interleaved": False, "is_llama_config": True}

PUBLISHED = {
    "DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(1536, 8960, 28, 12, 2, parameters=1_777_088_000, **_DISTILLED,
                                            max_window_layers=21),
    "DeepSeek-R1-Distill-Qwen-7B": _qwen2(3584, 18944, 28, 28, 4, parameters=7_615_616_512, **_DISTILLED,
                                          vocab_size=152064),
    "Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, parameters=494_032_768, use_mrope=False),
    "Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 2, parameters=494_032_768, max_window_layers=21),
    "Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, parameters=1_543_714_304, max_position_embeddings=131072,
                           sliding_window=131072, use_mrope=False),
    "Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2, parameters=1_543_714_304, max_window_layers=21),
    "Qwen2.5-7B": _qwen2(3584, 18944, 28, 28, 4, parameters=7_615_616_512, vocab_size=152064, sliding_window=131072,
                         max_position_embeddings=131072, tie_word_embeddings=False, use_mrope=False),
    "Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 4, parameters=7_615_616_512, vocab_size=152064,
                                  sliding_window=131072, tie_word_embeddings=False),
    "Qwen2.5-Math-1.5B": _qwen2(1536, 8960, 28, 12, 2, parameters=1_543_714_304, rope_theta=10000,
                                max_position_embeddings=4096, sliding_window=4096, max_window_layers=21,
                                use_mrope=False),
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, 8, parameters=596_049_920),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, 8, parameters=1_720_574_976),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, 8, parameters=4_022_468_096),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, 8, parameters=8_190_735_360, tied=False),
    "SmolLM2-135M": _smollm2(576, 1536, 30, 9, 3, parameters=134_515_008, **_SMOL),
    "SmolLM2-360M": _smollm2(960, 2560, 32, 15, 5, parameters=361_821_120, **_SMOL),
    "SmolLM2-1.7B": _smollm2(2048, 8192, 24, 32, 32, parameters=1_711_376_384, rope_theta=130000),
    "Llama-3.1-8B": _llama3(4096, 14336, 32, 32, 8, parameters=8_030_261_248, factor=8.0),
    "Llama-3.2-1B": _llama3(2048, 8192, 16, 32, 8, parameters=1_235_814_400, factor=32.0, head_dim=64,
                            tie_word_embeddings=True),
    "Llama-3.2-3B": _llama3(3072, 8192, 28, 24, 8, parameters=3_212_749_824, factor=32.0, head_dim=128,
                            tie_word_embeddings=True),
    "Llama-3.3-70B-Instruct": _llama3(8192, 28672, 80, 64, 8, parameters=70_553_706_496, factor=8.0, head_dim=128),
}

# Name -> (fields that say why it is refused, the field that the refusal must name)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mixtral-8x7B": ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, "model_type"),
    "Qwen1.5-MoE-A2.7B": ({"model_type": "qwen2_moe", "num_experts": 60}, "model_type"),
    "Qwen3-30B-A3B": ({"model_type": "qwen3_moe", "num_experts": 128}, "model_type"),
    "DeepSeek-R1": ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "model_type"),
    "Gemma-2-2B": ({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}, "model_type"),
    "Mistral-7B-v0.1": ({"model_type": "mistral", "sliding_window": 4096}, "model_type"),
    "Phi-3-mini-128k": ({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0],
                                                                "long_factor": [1.0]}}, "model_type"),
    "SmolLM3-3B": ({"model_type": "smollm3"}, "model_type"),
    "Qwen2.5-VL-3B": ({"model_type": "qwen2_5_vl"}, "model_type"),
    "Qwen2.5-7B-Instruct-1M": ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config"),
    "Qwen2.5-7B-Instruct-AWQ": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config"),
}
