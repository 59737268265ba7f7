"""The models of the benchmarks: randomly initialised Qwen2 with the digit tokenizer."""

from __future__ import annotations

import math
from pathlib import Path

SIZES = {
    "0.8m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "3.4m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8},
    "10m": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "num_attention_heads": 12},
}


def half_the_cap(cap: int) -> int:
    """The vocabulary at which a quarter of the samples reaches the cap and the median length is half of it."""
    return round(cap / (2 * math.log(2)))


def write_bench_model(dst: Path, size: str = "0.8m", vocabulary: int = 512) -> None:
    """Write the Hugging Face directory if it is not there.

    vocabulary: a random sample draws the stop id with about 1 / vocabulary at each token; 512 rarely does.
    """
    if (dst / "model.safetensors").exists():
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, write_tokenizer

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, **SIZES[size], num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID))
    model.save_pretrained(dst)
    write_tokenizer(dst)
    print(f"benchmark model: {sum(p.numel() for p in model.parameters()):,} parameters in {dst}")
