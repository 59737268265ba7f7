"""Are a Hugging Face directory and a Megatron checkpoint the same model? Config, tensors, bits, logits.

Opening both sides has already refused what does not fit its own config.json. What is left is to compare the two: their
configs field by field (a converter that does not is slime#1059), every tensor bit by bit, and the logits of
transformers and of megatron-core on real prompts, which also depend on what no tensor shows (rotary base, epsilon, head
sizes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siri_megatron.convert.grid import slots
from siri_megatron.convert.source import Weights, name_of
from siri_megatron.data.codec import TextCodec
from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import Part, tensors

PROMPTS = ("What is 17 + 25?", "12+34=", "a3b8c2|", "The capital of France is", "def fibonacci(n):\n    ",
           "Let x be a real number with x^2 - 5x + 6 = 0. Find all x.")
GENERATION = ("bos_token_id", "eos_token_id")
"""Fields of config.json that change what is generated, beside those of the architecture."""


class Different(ModelError):
    """The two sides are not the same model."""

    exit_code = 3


@dataclass(frozen=True)
class Compared:
    """Two models whose tensors have the same bits."""

    tensors: int
    parameters: int
    dtype: str


def compare_configs(one: Weights, other: Weights) -> None:
    """Every field that the model depends on.

    Raises:
        Different: names each field that differs, with both values.
    """
    differences = [f"{name}: {value!r} and {there!r}" for name, value, there in
                   [*_fields(one.arch, other.arch), *_raw_fields(one.config, other.config)] if value != there]
    if differences:
        raise Different(f"{one.companions / 'config.json'} and {other.companions / 'config.json'} differ in "
                         + "; ".join(differences), rule="both sides are one model",
                         fix="find out which is right, and convert again")


def compare_tensors(one: Weights, other: Weights, *, as_dtype: torch.dtype | None = None,
                    advance: Callable[[int], None]) -> Compared:
    """Every tensor, bit by bit.

    Args:
        as_dtype: the type that the conversion was asked to write; None: both sides have the same type.

    Raises:
        Different: names the first tensor that differs, and where.
    """
    if as_dtype is None and one.dtype != other.dtype:
        raise Different(f"{one.path} is in {name_of(one.dtype)}, {other.path} in {name_of(other.dtype)}",
                         rule="a type changes only when --dtype asks for it", fix="convert again")
    for slot in slots(one.arch):
        for part, mine, theirs in zip(slot.entry.parts, one.tensors(slot), other.tensors(slot), strict=True):
            _compare(part, mine.to(as_dtype or one.dtype), theirs.to(as_dtype or one.dtype), one.path, other.path)
            advance(mine.nbytes)
    parts = tensors(one.arch)
    return Compared(len(parts), sum(prod(part.shape) for part in parts), name_of(as_dtype or one.dtype))


def encode(directory: Path, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts that the directory's tokenizer can write.

    Raises:
        ModelError: there is no tokenizer, or it knows none of the prompts.
    """
    codec = TextCodec.load(directory)
    rows = [row for row in (_tokens(codec, prompt) for prompt in prompts) if row]
    if not rows:
        raise ModelError(f"the tokenizer of {directory} has no tokens for any of the {len(prompts)} prompts",
                         rule="logits are compared on real prompts", fix="give some with --prompts FILE, one a line")
    return rows


def _tokens(codec: TextCodec, prompt: str) -> list[int]:
    """None where the tokenizer has no token for a character and none for unknown ones."""
    try:
        return codec.encode_prompt(prompt)
    except Exception as error:  # tokenizers raises no class of its own
        if "UNK" not in str(error):
            raise
        return []


def _compare(part: Part, mine: Tensor, theirs: Tensor, one: Path, other: Path) -> None:
    if bits(mine).equal(bits(theirs)):
        return
    different = bits(mine) != bits(theirs)
    at = [int(index) for index in different.nonzero()[0]]
    raise Different(f"{part.name} differs between {one} and {other} in {int(different.sum())} of {mine.numel()} "
                    f"values, first at {at}: {mine[tuple(at)].item()} and {theirs[tuple(at)].item()}",
                    rule="every tensor is the same bit for bit", fix="convert again")


def bits(tensor: Tensor) -> Tensor:
    """As integers: 0.0 is not -0.0, and equal NaNs are equal."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _fields(one: Architecture, other: Architecture) -> list[tuple[str, Any, Any]]:
    """Those of the rotary table one by one: rope.base, rope.factor."""
    mine, theirs = (asdict(arch) | {f"rope.{name}": value for name, value in asdict(arch.rope).items()}
                    for arch in (one, other))
    return [(name, value, theirs[name]) for name, value in mine.items() if name != "rope"]


def _raw_fields(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, one.get(name), other.get(name)) for name in GENERATION]


