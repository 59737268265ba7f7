"""Bytes that a token leaves behind in a forward pass, until its backward pass: term by term, what autograd saves.

Korthikanti et al. (arXiv 2205.05198, section 4) count for a layer of GPT-3 in 16 bit  s b h (34 + 5 a s / h)  bytes;
over t tensor-parallel ranks  s b h (10 + 24/t + 5 a s / (h t)),  with sequence parallelism all of it over t, and with
full recomputation only the layer's input, 2 s b h. This is the same count for these layers: RMSNorm for LayerNorm, a
gated MLP, grouped queries, rotary positions, no dropout (no masks), attention that never holds the scores (5 a s / h
falls away).

Per token and layer, with h = hidden, q and k = query and key width, d = head_dim, a = heads, f = ffn (all of them this
rank's part but h and d), e bytes an element:

    spec          local (measured)                           te (modelled)
    two norms     2 (3 h e + 4); in 16 bit 2 (2 h 4 + h e + 4)   2 (2 h e + 4)      input, normalised, output
    q, k norms    3 (q + k) e; in 16 bit 2 (q + k) 4         q e, + 4 (a + g)   inputs, normalised
    rotary        4 d e                                      -                  cosines and sines, for q and for k
    attention     packed: 2 SLOTS (q + k) e                  3 (q + k) e        q, k, v, output (v keeps q, k, v alive
                  bucketed: 3 (q + k) e                                         where it is a view of their product)
                  + 4 a                                      + 4 a              log-sum-exp, float32
                                                             in float32 4 a s   or the scores of a row of s tokens: no
                                                                                fused kernel of TE takes float32
    output        q e (packed: gathered from the slots)      -                  input of the projection
    gated MLP     5 f e                                      3 f e              gate and up, silu, up + 0, product

Where the context-parallel ranks hold 1/cp of the tokens, so are these bytes; but the local spec's attention gathers the
whole row on every rank. The te column is read from Transformer Engine's and megatron-core's sources; no GPU has
confirmed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from siri_megatron.config import LearnerConfig
from siri_megatron.learner.architecture import Architecture

Spec = Literal["local", "te"]
Mode = Literal["packed", "bucketed"]
BYTES = {"float32": 4, "bfloat16": 2}
SLOTS = 1.1
"""Slots of attention over tokens, local spec, packed: segments are padded to the longest of their group, at most by a
quarter (`learner.attention.SIMILAR`), not at all where all are equally long. Modelled: 1.1 is that of even lengths."""
FLOAT = 4


@dataclass(frozen=True)
class TokenBytes:
    """Activations of one token on one rank, of a micro-batch whose tokens the context-parallel ranks share."""

    layer: float
    """Saved by a layer."""
    checkpoint: float
    """The input of a layer, which is all that full recomputation saves of it."""
    once: float
    """Saved once for a micro-batch: ids, rotary angles, the input of the stage."""
    head: float
    """Saved by the last norm and the output layer beside the logits."""
    backward: float
    """Largest working set of a layer's backward pass beside what is saved."""


@dataclass(frozen=True)
class Widths:
    """Sizes of a layer on one tensor-parallel rank."""

    hidden: float
    """Of what is cut along the sequence with sequence parallelism."""
    query: int
    key: int
    heads: int
    groups: int
    head_dim: int
    ffn: int

    @classmethod
    def of(cls, arch: Architecture, layout: LearnerConfig) -> Widths:
        heads, groups = arch.heads // layout.tp, arch.groups // layout.tp
        return cls(arch.hidden / (layout.tp if layout.sequence_parallel else 1), heads * arch.head_dim,
                   groups * arch.head_dim, heads, groups, arch.head_dim, arch.ffn // layout.tp)


def token_bytes(arch: Architecture, layout: LearnerConfig, dtype: str, *, spec: Spec, mode: Mode,
                longest: int) -> TokenBytes:
    """The terms above for one token of a micro-batch of which this rank holds 1/cp of the tokens.

    longest: tokens of its longest row.
    """
    width, size, share = Widths.of(arch, layout), BYTES[dtype], 1 / layout.cp
    scores = FLOAT * width.heads * longest if spec == "te" and size == FLOAT else 0
    layer = _layer(width, size, spec, mode, layout, arch.qk_norm)
    if layout.recompute != "selective":
        layer += scores * share
    receives = width.hidden * size if layout.pp > 1 and size != FLOAT else 0  # else the first norm keeps the same
    once = 8 + FLOAT * arch.head_dim + receives
    return TokenBytes(layer=layer, checkpoint=width.hidden * size * share, once=once * share,
                      head=_norm(width, size, spec) * share,
                      backward=((2 * width.ffn + arch.hidden) * size + 2 * scores) * share)


def _norm(width: Widths, size: int, spec: Spec) -> float:
    """A norm over the hidden size, and its output."""
    if spec == "te":
        return 2 * width.hidden * size + FLOAT
    return 2 * width.hidden * FLOAT + width.hidden * size + FLOAT


def _layer(width: Widths, size: int, spec: Spec, mode: Mode, layout: LearnerConfig, qk_norm: bool) -> float:
    """Bytes of a token of the micro-batch in a layer."""
    q, k, share = width.query, width.key, 1 / layout.cp
    own = 2 * _norm(width, size, spec) + (3 if spec == "te" else 5) * width.ffn * size
    if spec == "local":
        own += 4 * width.head_dim * size
    if qk_norm:
        own += _head_norms(q, k, size, spec) + FLOAT * (width.heads + width.groups)
    return own * share + _attention(q, k, width.heads, size, spec, mode, share, layout.recompute == "selective")


def _head_norms(q: int, k: int, size: int, spec: Spec) -> float:
    if spec == "te":
        return q * size
    return 3 * (q + k) * size if size == FLOAT else 2 * (q + k) * FLOAT


def _attention(q: int, k: int, heads: int, size: int, spec: Spec, mode: Mode, share: float, recomputed: bool) -> float:
    """The core attention. The local spec's holds the whole row on every context-parallel rank.

    Recomputing it ("selective") keeps its inputs instead of its output and log-sum-exp, and the output is kept by the
    projection anyway: where attention never holds the scores it saves nothing.
    """
    if recomputed:
        return (3 * q + 3 * k) * size * share
    if spec == "te":
        return ((3 * q + 3 * k) * size + FLOAT * heads) * share
    if mode == "bucketed":
        return (3 * q + 3 * k) * size + FLOAT * heads
    return SLOTS * ((2 * q + 2 * k) * size + FLOAT * heads) + q * size * share
