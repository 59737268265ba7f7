"""What the headers of a model directory say, against what its architecture asks for. No torch, so preflight has it too.

Invariants:
- exactly_these: a tensor that is missing, surplus, of the wrong shape or of the wrong type is refused by its name.
- tied_copy_allowed: the output layer of a tied model may be stored as well (that it is a copy, `load` checks).
- tables_allowed: rotary tables, which older transformers stored with a model, are no tensors of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import Part, tensors

FLOATS = {"F64", "F32", "F16", "BF16"}
FIX = "copy the model directory again, or save it with transformers' save_pretrained"
HEAD = "lm_head.weight"
TABLE = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    shape: tuple[int, ...]
    kind: str
    """safetensors' name of the type, e.g. F32."""


def check_stored(found: Mapping[str, Stored], arch: Architecture, model_dir: Path) -> None:
    """Names, shapes and types of a whole directory.

    Raises:
        ModelError: names the tensor.
    """
    check_names(found, arch, model_dir)
    for part in tensors(arch):
        check_tensor(part, found[part.name])


def check_names(found: Collection[str], arch: Architecture, model_dir: Path) -> None:
    """Exactly the tensors of the architecture, no more and no less.

    Raises:
        ModelError: names what is missing or surplus.
    """
    wanted = {part.name for part in tensors(arch)}
    allowed = wanted | {HEAD} if arch.tied else wanted
    surplus = {name for name in set(found) - allowed if not name.endswith(TABLE)}
    for word, names in (("lacks", wanted - set(found)), ("has a surplus of", surplus)):
        if names:
            first = ", ".join(sorted(names)[:4])
            raise ModelError(f"{model_dir} {word} {len(names)} tensors: {first}{', ...' if len(names) > 4 else ''}",
                             rule=f"exactly the {len(wanted)} tensors of a {arch.family} of {arch.layers} layers, "
                                  f"tie_word_embeddings={arch.tied}", fix=FIX)


def check_tensor(part: Part, stored: Stored) -> None:
    """Shape and type of one tensor.

    Raises:
        ModelError: it is another than the architecture's.
    """
    if stored.shape != part.shape:
        raise ModelError(f"{part.name} in {stored.file} has shape {list(stored.shape)}, "
                         f"config.json asks for {list(part.shape)}",
                         rule="tensors have the shapes that config.json implies", fix=FIX)
    if stored.kind not in FLOATS:
        raise ModelError(f"{part.name} in {stored.file} is of type {stored.kind}",
                         rule=f"one of {', '.join(sorted(FLOATS))}", fix="start from an unquantised model")
