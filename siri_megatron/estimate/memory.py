"""Memory of a learner rank in a train step: the formulas, checked on CPU against the real learner's allocations.

    total = base + buffers + parameters + gradients + optimizer + reference
            + the larger of   activations + the larger of (logits, backward)      in the forward and backward passes
                              between                                             the update, the export, a save

With P parameters on the rank (`estimate.parameters`), e bytes an element of the model's dtype, d = dp x cp:

    parameters   P e
    gradients    4 P: megatron-core's DDP keeps them in float32 (grad_reduce_in_fp32), whole on every rank
    optimizer    8 P, and in 16 bit a float32 copy, 4 P; over d with the distributed optimizer (Rajbhandari et al.,
                 ZeRO stage 1, arXiv 1910.02054; megatron-core, docs of dist_optimizer)
    reference    P e with a KL term, on the host
    activations  see `estimate.activations`, of every micro-batch in flight: pp - stage of them in 1F1B; of a virtual
                 pipeline 2 (pp - stage - 1) + (vpp - 1) pp + 1 chunks (Narayanan et al., arXiv 2104.04473;
                 megatron-core, get_pp_rank_microbatches)
    logits       `learner.logprobs`: T tokens x C columns, chunks of c = CHUNK / C tokens in float32
                 forward T C e + 8 c C; backward 2 T C e + 8 c C in 16 bit; output layer T C e + C h e

Invariants:
- grows_with_tokens: no field falls when tokens or the longest row grow.
- shared_by_dp: the distributed optimizer divides `optimizer` by dp x cp.
- recompute_never_raises: full recomputation never raises `activations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.activations import BYTES, FLOAT, Mode, Spec, TokenBytes, token_bytes
from siri_megatron.estimate.parameters import held_parameters
from siri_megatron.learner.architecture import Architecture

CHUNK = 1 << 25
"""`learner.logprobs.CHUNK` (that module imports torch)."""
BATCH_BYTES = 72
"""A token of a micro-batch: ids, labels, mask, log-probs, advantages, weights, segment, and its places in the row."""
EXPORT_BYTES = 64 << 20
"""`weights.export.BUCKET_BYTES` (that module imports torch)."""
MODELLED: Mapping[str, str] = {
    "te": "activations under Transformer Engine are read from its sources; no GPU has confirmed them",
    "nccl": "communication buffers and the allocator's fragmentation on a GPU are one flat allowance",
    "base": "what Python, torch and the CUDA context take is a flat allowance",
    "slots": "padding of the local spec's attention groups is taken for that of evenly spread lengths",
}
"""What no measurement has confirmed."""
BASE = {"local": 600 << 20, "te": 2 << 30}
"""Python, torch and megatron-core in a process; on a GPU the CUDA context, NCCL's and cuBLAS's buffers."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one learner rank at the peak of a train step."""

    parameters: int
    gradients: int
    optimizer: int
    reference: int
    """Frozen copy of the starting weights, on the host; 0 without a KL term."""
    activations: int
    """Saved for the backward pass by every micro-batch in flight."""
    logits: int
    """Last stage: logits, their gradient and the float32 chunks beside them; 0 elsewhere."""
    backward: int
    """Working set of a backward pass through a layer (recomputed, if so chosen) or the embedding; never there together with `logits`."""
    between: int
    """Between two passes: AdamW's temporaries, an export bucket. Never there together with activations."""
    buffers: int
    """Tensors of the micro-batches in flight."""
    base: int
    """The process itself."""

    @property
    def total(self) -> int:
        passing = self.activations + max(self.logits, self.backward)
        return (self.base + self.buffers + self.parameters + self.gradients + self.optimizer + self.reference
                + max(passing, self.between))


def learner_memory(arch: Architecture, layout: LearnerConfig, dtype: str, *, spec: Spec, mode: Mode, tokens: int,
                   longest: int, micro_batches: int, algorithm: AlgorithmConfig) -> tuple[RankMemory, ...]:
    """One entry a pipeline stage (chunks of a virtual pipeline added up), of its worst tensor- and data-parallel rank.

    Args:
        spec: resolved (`local` or `te`).
        mode: packed: tokens of the row; bucketed: rows x width.
        tokens: of a micro-batch, padding included, all context-parallel ranks together.
        longest: longest row, tokens.
        micro_batches: of a data-parallel rank in an optimizer step.
    """
    given = token_bytes(arch, layout, dtype, spec=spec, mode=mode)
    return tuple(_rank(arch, layout, dtype, spec, stage, given, tokens, longest, micro_batches, algorithm)
                 for stage in range(layout.pp))


def in_flight(layout: LearnerConfig, stage: int, micro_batches: int) -> int:
    """Forward passes of one model chunk that a pipeline rank holds at its peak."""
    if layout.vpp == 1:
        return min(micro_batches, layout.pp - stage)
    return min(micro_batches * layout.vpp, 2 * (layout.pp - stage - 1) + (layout.vpp - 1) * layout.pp + 1)


def _rank(arch: Architecture, layout: LearnerConfig, dtype: str, spec: Spec, stage: int, token: TokenBytes,
          tokens: int, longest: int, micro_batches: int, algorithm: AlgorithmConfig) -> RankMemory:
    size, held = BYTES[dtype], held_parameters(arch, layout)[stage]
    chunks, layers, last = in_flight(layout, stage, micro_batches), arch.layers // (layout.pp * layout.vpp), (
        stage == layout.pp - 1)
    saved, again = chunks * _chunk(token, layers, layout), token.layer if layout.recompute == "full" else 0
    head = token.head if last else 0
    table = FLOAT * arch.head_dim * longest
    return RankMemory(
        parameters=held.total * size, gradients=held.total * FLOAT,
        optimizer=optimizer_bytes(held.total, dtype, layout),
        reference=held.total * size if algorithm.kl_coef else 0,
        activations=ceil(tokens * (saved + head)),
        logits=_logits(arch, layout, size, spec, tokens, algorithm) if last else 0,
        backward=max(ceil(tokens * (token.backward + again)), held.largest * size),
        between=max(ceil(2.2 * held.largest * FLOAT), 2 * min(EXPORT_BYTES, held.total * size)),
        buffers=ceil(min(micro_batches, layout.pp - stage) * tokens * BATCH_BYTES / layout.cp) + table,
        base=BASE[spec])


def optimizer_bytes(parameters: int, dtype: str, layout: LearnerConfig) -> int:
    """AdamW's moments, and in 16 bit the float32 copy of the weights, of a rank with so many parameters."""
    each = 2 * FLOAT + (FLOAT if BYTES[dtype] < FLOAT else 0)
    return ceil(parameters * each / (layout.dp * layout.cp if layout.distributed_optimizer else 1))


def _chunk(token: TokenBytes, layers: int, layout: LearnerConfig) -> float:
    """Saved by a forward pass through a model chunk, per token."""
    return token.once + layers * (token.checkpoint if layout.recompute == "full" else token.layer)


def _logits(arch: Architecture, layout: LearnerConfig, size: int, spec: Spec, tokens: int,
            algorithm: AlgorithmConfig) -> int:
    """The largest of: log-probs forward, log-probs backward, backward of the output layer."""
    columns, own = arch.padded_vocab(layout.tp) // layout.tp, tokens // layout.cp
    entries, chunk = own * columns, min(own, max(1, CHUNK // columns)) * columns
    bonus = bool(algorithm.entropy_coef or algorithm.entropy_target)
    backward = FLOAT * chunk * (2 if size < FLOAT else bonus)
    return max(entries * size + 2 * FLOAT * chunk, 2 * entries * size + backward,
               entries * size + (columns + own) * arch.hidden * size)
