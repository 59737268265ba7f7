"""A Hugging Face model directory, read without loading it: config.json, the headers of the shards, the tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.errors import ModelError
from siri_megatron.weights.stored import Stored

RULE = "model.path is a Hugging Face directory: config.json, *.safetensors, a tokenizer"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
INDEX = "model.safetensors.index.json"
SAMPLES, SAMPLE_BYTES = 16, 2**20
HEADER_LENGTH = 8  # a safetensors file opens with the length of its JSON header, little endian


@dataclass(frozen=True)
class ModelFiles:
    """What is known of a model before it is loaded."""

    path: Path
    config: Mapping[str, Any]
    bytes: int
    tensors: Mapping[str, Stored]
    fingerprint: str
    """Hash of config and weights (of large files, of evenly spread parts): tells two starting points apart."""

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def inspect_model(path: Path) -> ModelFiles:
    """Look the directory over.

    Raises:
        ModelError: something is missing, cut off or not what its name says.
    """
    if not path.is_dir():
        raise ModelError(f"model directory {path} {'is a file' if path.exists() else 'does not exist'} "
                         f"(seen from {Path.cwd()})", rule=f"{RULE}; relative paths start where siri is called",
                         fix="set model.path to a directory; `siri sft configs/tiny-warmstart.yaml` makes the tiny one")
    config = _json(path / "config.json")
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"model directory {path} has no tokenizer ({', '.join(TOKENIZERS)})", rule=RULE,
                         fix="copy the tokenizer files of the model beside its weights")
    shards = _shards(path)
    return ModelFiles(path=path, config=config, fingerprint=_fingerprint(config, shards), tensors=stored_tensors(path),
                      bytes=sum(entry["data_offsets"][1] - entry["data_offsets"][0]
                                for shard in shards for entry in _header(shard).values()))


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of the directory, as the headers of its files say.

    Raises:
        ModelError: a file is missing or cut off.
    """
    return {name: Stored(shard, tuple(entry["shape"]), str(entry["dtype"]))
            for shard in _shards(path) for name, entry in _header(shard).items()}


def _fingerprint(config: Mapping[str, Any], shards: list[Path]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for shard in shards:
        size = shard.stat().st_size
        digest.update(f"{shard.name} {size}".encode())
        with shard.open("rb") as file:
            for part in range(SAMPLES):
                file.seek(size * part // SAMPLES)
                digest.update(file.read(min(SAMPLE_BYTES, size // SAMPLES + 1)))
    return digest.hexdigest()[:16]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path} does not exist", rule=RULE, fix="complete the directory, or correct model.path")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", rule=RULE, fix="restore the file from where it came") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not a mapping", rule=RULE, fix="restore the file")
    return value


def _shards(path: Path) -> list[Path]:
    shards = sorted(path.glob("*.safetensors"))
    if (path / INDEX).is_file():
        named = sorted(set(_json(path / INDEX).get("weight_map", {}).values()))
        missing = [name for name in named if not (path / name).is_file()]
        if missing:
            raise ModelError(f"{path} lacks {', '.join(missing)}: {len(missing)} of the {len(named)} shards in {INDEX}",
                             rule=RULE, fix="download the missing shards")
        shards = [path / name for name in named]
    if not shards:
        others = ", ".join(file.name for file in path.glob("*.bin")) or "no weights at all"
        raise ModelError(f"model directory {path} has no *.safetensors ({others})", rule=RULE,
                         fix="save the model with safe_serialization, or complete the directory")
    return shards


def _header(shard: Path) -> dict[str, Any]:
    """Tensors in the JSON header of a shard, once the file is as long as the header says."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH), "little")
        text = file.read(length) if HEADER_LENGTH + length <= size else b""
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{shard} ({size} bytes) has no readable safetensors header", rule=RULE,
                         fix="download or export the file again") from None
    if size != HEADER_LENGTH + length + end:
        raise ModelError(f"{shard} has {size} bytes, its header asks for {HEADER_LENGTH + length + end}",
                         rule="a shard is as long as its header says", fix="download or export the file again")
    return header
