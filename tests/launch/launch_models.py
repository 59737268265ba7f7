"""A model directory that is right in form (headers, config, tokenizer) and made without torch. Not a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 37,
          "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 10000.0}


def write_form(path: Path, **fields: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | fields))
    (path / "tokenizer.json").write_text("{}")
    write_shard(path / "model.safetensors", {"model.embed_tokens.weight": [37, 32], "model.norm.weight": [32]})
    return path


def write_shard(path: Path, shapes: dict[str, list[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
