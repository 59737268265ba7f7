"""`config.json` of the initial model of `siri sft`. No torch, so preflight has it too."""

from __future__ import annotations

from typing import Any

from siri_megatron.data.character_tokenizer import CharacterTokenizer
from siri_megatron.sft_config import InitConfig


def hf_config(init: InitConfig, tokenizer: CharacterTokenizer) -> dict[str, Any]:
    """config.json of a Qwen2 model (query, key and value have biases), fp32, tied embeddings."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer.vocabulary),
        "hidden_size": init.hidden_size,
        "intermediate_size": init.ffn_size,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": init.kv_heads,
        "max_position_embeddings": init.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
