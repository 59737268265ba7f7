"""Tiny Hugging Face models with random weights that are large enough for errors to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["qwen2", "qwen2_tied", "qwen3", "qwen3_tied", "llama", "llama_tied"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "vocab_size": 37, "max_position_embeddings": 16384, "rms_norm_eps": 1e-6}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def write_model(path: Path, kind: Kind = "qwen2_tied", *, seed: int = 0, shards: bool = False, **sizes: Any) -> Path:
    """Write a model of a family to a directory. sizes: fields of config.json; shards: several safetensors files.

    The vocabulary (37) is not a multiple of 2, so tensor parallelism has to pad it.
    """
    model = make_model(kind, seed=seed, **sizes)
    model.save_pretrained(path, max_shard_size="20KB" if shards else "5GB")
    return path


def make_model(kind: Kind = "qwen2_tied", *, seed: int = 0, **sizes: Any) -> Any:
    """The same model in memory, float32, eager attention."""
    import transformers as hf
    family = kind.removesuffix("_tied")
    config_class, model_class = {"qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
                                 "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
                                 "llama": (hf.LlamaConfig, hf.LlamaForCausalLM)}[family]
    fields = SMALL | {"tie_word_embeddings": kind.endswith("_tied"), "attn_implementation": "eager"}
    fields["rope_parameters"] = LLAMA3_ROPE if family == "llama" else {"rope_type": "default", "rope_theta": 10000.0}
    if family == "qwen3":
        fields["head_dim"] = 16  # not hidden / heads: the two must not be mixed up
    model = model_class(config_class(**(fields | sizes))).float().eval()
    _randomise(model, seed)
    return model


def load_model(path: Path) -> Any:
    """A saved model, float32, eager attention, ready for gradients."""
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def _randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.15 * (SMALL["hidden_size"] / model.config.hidden_size) ** 0.5  # else wide models have huge logits
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.normal_(1, 0.2, generator=generator)
        else:
            parameter.normal_(0, 0.2 if name.endswith("bias") else deviation, generator=generator)
