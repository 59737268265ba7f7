"""Rotary tables, of every kind and under both layer specs, from one set of inverse frequencies.

megatron-core's own tables know one variant of llama3 and take yarn only through another class, so the frequencies are
computed here and put into its `RotaryEmbedding`. They are those of transformers (`ROPE_INIT_FUNCTIONS`) bit for bit: at
position 100,000 a relative error of 1e-7 is already an angle of 0.01. Yarn's attention factor, which transformers puts
on cosines and sines, goes into the softmax scale (`Architecture.softmax_scale`): the fused rotary kernels of
Transformer Engine take no factor (the packed one would drop it without a word), and whole heads rotate, so that query
times key has it squared either way.

Invariants:
- same_bits: inverse frequencies equal those of transformers in every bit.
- restarts: a packed row's angles are those of each segment alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from siri_megatron.learner.attention import PackedRow
from siri_megatron.learner.mcore import RotaryEmbedding
from siri_megatron.learner.rope import Rope

ROTARY_QUANTUM = 256
"""Rotary tables are made in multiples of this length, so that few different ones are cached."""


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[head_dim / 2] angle per position of each pair of dimensions, float32. Operations in transformers' order."""
    wavelengths = rope.base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    if rope.kind == "yarn":
        return _yarn(rope, wavelengths, head_dim)
    trained = 1.0 / wavelengths
    if rope.kind == "llama3":
        return _llama3(rope, trained)
    return trained / rope.factor if rope.kind == "linear" else trained


def _llama3(rope: Rope, trained: Tensor) -> Tensor:
    """Scaled below low_freq_factor turns within the original context, kept above high_freq_factor, else blended."""
    wavelength = 2 * math.pi / trained
    longest, shortest = (rope.original_positions / edge for edge in (rope.low_freq_factor, rope.high_freq_factor))
    share = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - share) * trained / rope.factor + share * trained
    scaled = torch.where(wavelength > longest, trained / rope.factor, blended)
    return torch.where(wavelength < shortest, trained, scaled)


def _yarn(rope: Rope, wavelengths: Tensor, head_dim: int) -> Tensor:
    """Kept before the dimension that turns beta_fast times, scaled behind the one of beta_slow, a ramp between."""
    first, last = (_dimension(rope, turns, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last += 0.001 if first == last else 0
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - first) / (last - first)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _dimension(rope: Rope, turns: float, head_dim: int) -> float:
    """The (fractional) pair of dimensions that turns so many times within the original context."""
    return head_dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.base))


class SegmentRotary(RotaryEmbedding):
    """Rotary table indexed by each token's position inside its own segment.

    GPTModel asks `get_rotary_seq_len` how long a table it needs and hands the answer to `forward`. For a packed row of
    the local spec the answer is the positions themselves (with the length of the table), and `forward` looks them up;
    everything else, Transformer Engine's packed rows included, takes megatron-core's way.
    """

    def __init__(self, rope: Rope, head_dim: int, config: Any) -> None:
        super().__init__(head_dim, 1.0, rotary_base=rope.base, use_cpu_initialization=config.use_cpu_initialization)
        self.inv_freq: Tensor = inverse_frequencies(rope, head_dim)  # the first forward moves them to the GPU

    def get_rotary_seq_len(self, inference_context: Any, transformer: Any, transformer_input: Any,
                           transformer_config: Any, packed_seq_params: Any = None, **kwargs: Any) -> Any:
        if isinstance(packed_seq_params, PackedRow):
            length = -(-packed_seq_params.max_seqlen_q // ROTARY_QUANTUM) * ROTARY_QUANTUM
            return length, packed_seq_params.positions
        return super().get_rotary_seq_len(inference_context, transformer, transformer_input, transformer_config,
                                          packed_seq_params, **kwargs)

    def forward(self, max_seq_len: Any, *args: Any, **kwargs: Any) -> Tensor:
        """[t, 1, 1, head_dim] angles."""
        if isinstance(max_seq_len, tuple):
            length, positions = max_seq_len  # packed_seq: of a table, megatron would cut this rank's part itself
            return F.embedding(positions, super().forward(length, packed_seq=True)[:, 0, 0])[:, None, None]
        return super().forward(max_seq_len, *args, **kwargs)
