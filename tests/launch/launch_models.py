"""A model directory that is right in form (headers, config, tokenizer) and made without torch. Not a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

CONFIG = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 37,
          "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 10000.0,
          "eos_token_id": 31}
TOKENIZER = Path(__file__).parents[2] / "configs" / "models" / "tiny-digits" / "tokenizer.json"

LAYER = {"input_layernorm.weight": [32], "post_attention_layernorm.weight": [32],
         "self_attn.q_proj.weight": [32, 32], "self_attn.k_proj.weight": [16, 32], "self_attn.v_proj.weight": [16, 32],
         "self_attn.q_proj.bias": [32], "self_attn.k_proj.bias": [16], "self_attn.v_proj.bias": [16],
         "self_attn.o_proj.weight": [32, 32], "mlp.gate_proj.weight": [48, 32], "mlp.up_proj.weight": [48, 32],
         "mlp.down_proj.weight": [32, 48]}
TENSORS = {"model.embed_tokens.weight": [37, 32], "model.norm.weight": [32],
           **{f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()}}


def write_form(path: Path, **fields: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | fields))
    shutil.copyfile(TOKENIZER, path / "tokenizer.json")
    write_shard(path / "model.safetensors", TENSORS)
    return path


def write_shard(path: Path, shapes: dict[str, list[int]], kind: str = "F32") -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
