"""The conversions: open the source, refuse what cannot work, write out of sight, compare, rename.

    hf_to_megatron   HfWeights       ─ chunks ──► write_megatron
    megatron_to_hf   MegatronWeights ─ tensors ─► write_hf
    reshard          MegatronWeights ─ chunks ──► write_megatron

Invariants:
- round_trip: HF -> Megatron -> HF gives the same bits in every family, layout and type.
- refused_first: everything that can be known is checked before anything is written.
- verified_before_it_appears: with `verify`, a result that differs from its source never gets its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from siri_megatron.config import LearnerConfig
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.hf_write import SHARD_BYTES, write_hf
from siri_megatron.convert.megatron import MegatronWeights
from siri_megatron.convert.output import check_destination, check_space, new_directory
from siri_megatron.convert.source import Weights
from siri_megatron.convert.verify import Compared, compare_configs, compare_tensors, encode
from siri_megatron.convert.write import write_megatron
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.layout import faults
from siri_megatron.weights.names import tensors

if TYPE_CHECKING:
    from siri_megatron.convert.logits import LogitDifference

OVERHEAD_BYTES = 64 << 20
"""Room for everything but the tensors: headers, metadata, tokenizer."""

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]
"""Starts a bar (what is done, total bytes); returns who is told of each piece."""
Write = Callable[[Path, torch.dtype, Advance], None]


@dataclass(frozen=True)
class Options:
    """What all conversions have in common."""

    dtype: torch.dtype | None = None
    """Type of the written tensors; None: as the source's."""
    verify: bool = False
    prompts: Sequence[str] = ()
    """Prompts of the logit comparison; none: no comparison. Between two checkpoints there is none either."""
    force: bool = False


@dataclass(frozen=True)
class Verified:
    """What a comparison found."""

    tensors: Compared
    logits: LogitDifference | None


@dataclass(frozen=True)
class Done:
    """What a conversion did."""

    source: Weights
    dtype: torch.dtype
    verified: Verified | None


def hf_to_megatron(source: Path, destination: Path, *, tp: int, pp: int, options: Options, progress: Progress) -> Done:
    """Write a distributed checkpoint.

    Raises:
        ConfigError: the model cannot be cut that way, or is of a family that the learners do not know.
        ModelError: source or destination cannot be used, or verification found a difference.
    """
    weights = HfWeights.open(source)
    return _convert(weights, destination, [source], options, progress, _megatron_writer(weights, tp, pp),
                    MegatronWeights.open)


def megatron_to_hf(source: Path, destination: Path, *, hf: Path | None, shard_bytes: int = SHARD_BYTES,
                   options: Options, progress: Progress) -> Done:
    """Write a Hugging Face directory. `hf`: where config and tokenizer are, if not beside the checkpoint.

    Raises:
        ModelError: source or destination cannot be used, or verification found a difference.
    """
    weights = MegatronWeights.open(source, hf=hf)

    def write(part: Path, dtype: torch.dtype, advance: Advance) -> None:
        write_hf(weights, part, dtype, shard_bytes=shard_bytes, advance=advance)

    return _convert(weights, destination, [source, weights.companions], options, progress, write, HfWeights.open)


def reshard(source: Path, destination: Path, *, tp: int, pp: int, hf: Path | None, options: Options,
            progress: Progress) -> Done:
    """Write a distributed checkpoint for another layout.

    Raises:
        ConfigError: the model cannot be cut that way.
        ModelError: source or destination cannot be used, or verification found a difference.
    """
    weights = MegatronWeights.open(source, hf=hf)
    return _convert(weights, destination, [source, weights.companions], options, progress,
                    _megatron_writer(weights, tp, pp), MegatronWeights.open)


def verify(one: Weights, other: Weights, *, prompts: Sequence[str], as_dtype: torch.dtype | None = None,
           progress: Progress) -> Verified:
    """Configs, tensors, bits and (with prompts, if one side is a Hugging Face directory) logits.

    Raises:
        ModelError: names what differs; or there is no tokenizer for the prompts.
    """
    compare_configs(one, other)
    hf, megatron = sorted((one, other), key=lambda side: isinstance(side, MegatronWeights))
    rows = encode(hf.companions, prompts) if prompts and isinstance(hf, HfWeights) else []
    compared = compare_tensors(one, other, as_dtype=as_dtype, advance=progress("comparing tensors", nbytes(one)))
    if not rows:
        return Verified(compared, None)
    from siri_megatron.convert.logits import compare_logits  # megatron-core and transformers: seconds to import

    return Verified(compared, compare_logits(hf, megatron, rows, as_dtype=as_dtype))


def nbytes(weights: Weights, dtype: torch.dtype | None = None) -> int:
    """Bytes of all tensors, in the given type."""
    return sum(prod(part.shape) for part in tensors(weights.arch)) * (dtype or weights.dtype).itemsize


def check_cut(arch: Architecture, tp: int, pp: int) -> None:
    """Refuse what the learners refuse, in the words of this command.

    Raises:
        ConfigError: names the size that does not divide, and those that do.
    """
    ways = [", ".join(str(way) for way in range(1, size + 1) if size % way == 0)
            for size in (gcd(arch.heads, arch.groups, arch.ffn), arch.layers)]
    for fault in faults(arch, LearnerConfig(tp=tp, pp=pp)):
        raise ConfigError(fault.what.replace("learner.", ""), rule=fault.rule.replace("learner.", ""),
                          fix=f"--tp {ways[0]} and --pp {ways[1]} work")


def _megatron_writer(weights: Weights, tp: int, pp: int) -> Write:
    check_cut(weights.arch, tp, pp)

    def write(part: Path, dtype: torch.dtype, advance: Advance) -> None:
        write_megatron(weights, part, dtype, tp=tp, pp=pp, advance=advance)

    return write


def _convert(weights: Weights, destination: Path, sources: list[Path], options: Options, progress: Progress,
             write: Write, opened: Callable[[Path], Weights]) -> Done:
    dtype = options.dtype or weights.dtype
    check_destination(destination, sources, force=options.force)
    check_space(destination, nbytes(weights, dtype) + OVERHEAD_BYTES)
    if options.verify and options.prompts:
        encode(weights.companions, options.prompts)
    with new_directory(destination) as part:
        write(part, dtype, progress("converting", nbytes(weights, dtype)))
        verified = verify(weights, opened(part), prompts=options.prompts, as_dtype=options.dtype,
                          progress=progress) if options.verify else None
        check_destination(destination, sources, force=options.force)  # somebody may have written there meanwhile
    return Done(weights, dtype, verified)
