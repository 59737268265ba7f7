"""Memory of a learner rank in a train step: the formulas, checked on CPU against the real learner's allocations.

    total = base + parameters + gradients + optimizer + reference + allocator
            + the larger of   buffers + activations + the larger of (logits, backward)    in forward and backward passes
                              between                                                     in the update and the export

With P parameters on the rank (`estimate.parameters`), e bytes an element of the model's dtype, d = dp x cp:

    parameters   P e
    gradients    4 P: megatron-core's DDP keeps them in float32 (grad_reduce_in_fp32), whole on every rank
    optimizer    8 P, and in 16 bit a float32 copy, 4 P; over d with the distributed optimizer (Rajbhandari et al.,
                 ZeRO stage 1, arXiv 1910.02054; megatron-core, docs of dist_optimizer)
    reference    P e with a KL term, on the host
    activations  see `estimate.activations`, of every micro-batch in flight: pp - stage of them in 1F1B; of a virtual
                 pipeline 2 (pp - stage - 1) + (vpp - 1) pp + 1 chunks (Narayanan et al., arXiv 2104.04473;
                 megatron-core, get_pp_rank_microbatches)
    allocator    on a GPU, an eighth of the tensors: what torch's allocator holds beyond them
    logits       `learner.logprobs`: T tokens x C columns, chunks of c = CHUNK / C tokens in float32
                 forward T C e + 8 c C; backward 2 T C e, in 16 bit + 8 c C; output layer T C e + C h e

Invariants:
- grows_with_tokens: `micro_batches` rises with tokens, and nothing falls when tokens or the longest row grow (but for
  the room beside `backward`, where that is the embedding's).
- shared_by_dp: the distributed optimizer divides `optimizer` by dp x cp.
- recompute_never_raises: full recomputation never raises `activations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor

from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.activations import BYTES, FLOAT, Mode, Spec, TokenBytes, token_bytes
from siri_megatron.estimate.parameters import Held, held_parameters
from siri_megatron.learner.architecture import Architecture

CHUNK = 1 << 25
"""`learner.logprobs.CHUNK` (that module imports torch)."""
BATCH_BYTES = 72
"""A token of a micro-batch: ids, labels, mask, log-probs, advantages, weights, segment, and its places in the row."""
UPDATE_COPIES = 2
"""Temporaries of AdamW, float32 copies of the largest parameter."""
EXPORT_BYTES = 64 << 20
"""`weights.export.BUCKET_BYTES` (that module imports torch)."""
MODELLED: Mapping[str, str] = {
    "te": "activations under Transformer Engine are read from its sources; one run on an H200 confirms their sum",
    "allocator": "what torch's allocator holds on a GPU beyond the tensors is a share that one run has shown",
    "nccl": "communication buffers on a GPU are one flat allowance",
    "base": "what Python, torch and the CUDA context take is a flat allowance",
    "reduction": "gloo's copy in scattering the gradients of more than 48M parameters, where it passes an export's",
    "slots": "padding of the local spec's attention groups is taken for that of evenly spread lengths",
}
"""What no measurement has confirmed."""
BASE = {"local": 320 << 20, "te": 2 << 30}
"""Python, torch and megatron-core in a process (measured on CPU: 335 to 357 MiB of anonymous memory in a run of
`configs/tiny.yaml`, model and micro-batches included); on a GPU the CUDA context, NCCL's and cuBLAS's buffers."""

ALLOCATOR = {"local": 0.0, "te": 1 / 8}
"""Share of the tensors that torch's allocator holds beside them. Measured once, on an H200, by the smoke script's check
"memory" (docs/gpu.md): the driver showed 19.7 GB where tensors and `BASE` are 17.6."""


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
    """Working set of a backward pass through a layer (recomputed, if so chosen), or the gradient of the embedding after
    it; never there together with `logits`."""
    between: int
    """Between two passes: AdamW's temporaries, the copy of a reduction, or the buckets of an export. Never there
    together with activations."""
    buffers: int
    """Tensors of the micro-batches in flight, and what a neighbouring stage is sending."""
    base: int
    """The process itself."""
    allocator: int = 0
    """Held by torch's allocator on a GPU, in no tensor's use."""

    @property
    def total(self) -> int:
        return (self.base + self.parameters + self.gradients + self.optimizer + self.reference + self.allocator
                + max(self.micro_batches, self.between))

    @property
    def on_device(self) -> int:
        """The total without what lies on the host beside a GPU."""
        return self.total - self.reference

    @property
    def micro_batches(self) -> int:
        """What the micro-batches in flight take: it rises with their tokens, whatever else is there."""
        return self.buffers + self.activations + max(self.logits, self.backward)


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
    token = token_bytes(arch, layout, dtype, spec=spec, mode=mode, longest=longest)
    case = _Case(arch, layout, spec, BYTES[dtype], tokens, micro_batches, algorithm)
    return tuple(case.rank(stage, token) for stage in range(layout.pp))


def in_flight(layout: LearnerConfig, stage: int, micro_batches: int) -> int:
    """Forward passes of one model chunk that a pipeline rank holds at its peak."""
    if layout.vpp == 1:
        return min(micro_batches, layout.pp - stage)
    return min(micro_batches * layout.vpp, 2 * (layout.pp - stage - 1) + (layout.vpp - 1) * layout.pp + 1)


@dataclass(frozen=True)
class _Case:
    """What all stages have in common."""

    arch: Architecture
    layout: LearnerConfig
    spec: Spec
    size: int
    """Bytes of an element of the model's dtype."""
    tokens: int
    micro_batches: int
    algorithm: AlgorithmConfig

    def rank(self, stage: int, token: TokenBytes) -> RankMemory:
        held, last = held_parameters(self.arch, self.layout)[stage], stage == self.layout.pp - 1
        again = token.layer if self.layout.recompute == "full" else 0
        tensors = RankMemory(
            parameters=held.total * self.size, gradients=held.total * FLOAT,
            optimizer=optimizer_bytes(held.total, self.size, self.layout),
            reference=held.total * self.size if self.algorithm.kl_coef else 0,
            activations=ceil(self.tokens * (self.saved(stage, token) + (token.head if last else 0))),
            logits=self.logits() if last else 0,
            backward=max(ceil(self.tokens * (token.backward + again)),
                         held.largest * self.size - floor(self.tokens * self.chunk(token))),
            between=max(UPDATE_COPIES * held.largest * FLOAT, self.reduction(held), self.export(held)),
            buffers=self.buffers(stage), base=BASE[self.spec])
        return replace(tensors, allocator=ceil((tensors.on_device - tensors.base) * ALLOCATOR[self.spec]))

    def saved(self, stage: int, token: TokenBytes) -> float:
        """By the micro-batches in flight, per token of one."""
        return in_flight(self.layout, stage, self.micro_batches) * self.chunk(token)

    def chunk(self, token: TokenBytes) -> float:
        """By a forward pass through a model chunk, per token."""
        layers = self.arch.layers // (self.layout.pp * self.layout.vpp)
        return token.once + layers * (token.checkpoint if self.layout.recompute == "full" else token.layer)

    def logits(self) -> int:
        """The largest of: log-probs forward, log-probs backward, backward of the output layer."""
        columns, own = self.arch.padded_vocab(self.layout.tp) // self.layout.tp, self.tokens // self.layout.cp
        entries, chunk = own * columns, min(own, max(1, CHUNK // columns)) * columns
        bonus = int(bool(self.algorithm.entropy_coef or self.algorithm.entropy_target))
        copies = bonus if self.size == FLOAT else 2 if self.spec == "local" else 1 + bonus
        return max(entries * self.size + 2 * FLOAT * chunk, 2 * entries * self.size + copies * FLOAT * chunk,
                   (entries + (columns + own) * self.arch.hidden) * self.size)

    def reduction(self, held: Held) -> int:
        """gloo scatters reduced gradients from a copy of all of them."""
        shares = self.layout.dp * self.layout.cp if self.layout.distributed_optimizer else 1
        return held.total * FLOAT if shares > 1 and self.spec == "local" else 0

    def export(self, held: Held) -> int:
        """A bucket of all tensor-parallel ranks' shards, and the largest tensor that is joined from it; nothing where a
        rank holds the whole model, for it hands out its own weights."""
        if self.layout.tp * self.layout.pp == 1:
            return 0
        largest, whole = (count * self.layout.tp * self.size for count in (held.largest, held.total))
        return min(max(EXPORT_BYTES, largest), whole) + (largest if self.layout.tp > 1 else 0)

    def buffers(self, stage: int) -> int:
        """Tensors of the micro-batches in flight, and what a neighbouring stage is sending."""
        batches, pipeline = min(self.micro_batches, self.layout.pp - stage), self.layout.pp > 1
        parts = self.layout.cp * (self.layout.tp if self.layout.sequence_parallel else 1)
        return ceil(self.tokens * (batches * BATCH_BYTES / self.layout.cp
                                   + pipeline * self.arch.hidden * self.size / parts))


def optimizer_bytes(parameters: int, size: int, layout: LearnerConfig) -> int:
    """AdamW's moments, and in 16 bit the float32 copy of the weights, of a rank with so many parameters."""
    each = 2 * FLOAT + (FLOAT if size < FLOAT else 0)
    return ceil(parameters * each / (layout.dp * layout.cp if layout.distributed_optimizer else 1))
