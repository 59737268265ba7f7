"""Memory of one rank of a rollout engine (vLLM). Everything here is modelled; the KV cache is exact.

    weights       P / tp e
    kv_cache      2 layers (key heads / tp, at least 1) head_dim e for each cached token (Kwon et al., PagedAttention,
                  arXiv 2309.06180): keys and values
    activations   a forward pass over vLLM's largest batch, and the float32 logits and log-probs of every sequence
    base          the process; on a GPU the CUDA context and graphs
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.estimate.activations import BYTES, FLOAT
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.learner.architecture import Architecture

BATCHED_TOKENS = 2048
"""vLLM's max_num_batched_tokens at least (or max_model_len)."""
BASE = 1 << 30
"""Python, torch and vLLM in a process."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one tensor-parallel rank of an engine."""

    weights: int
    kv_cache: int
    activations: int
    base: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.base


def kv_cache_bytes(arch: Architecture, dtype: str, tokens: int, tp: int) -> int:
    """Keys and values of so many tokens on one rank; heads are copied where there are fewer than ranks."""
    return 2 * arch.layers * max(1, arch.groups // tp) * arch.head_dim * BYTES[dtype] * tokens


def engine_memory(arch: Architecture, dtype: str, *, tp: int, max_model_len: int, max_num_seqs: int,
                  kv_tokens: int) -> EngineMemory:
    """Args: kv_tokens: tokens that the cache holds."""
    size, batch = BYTES[dtype], max(BATCHED_TOKENS, max_model_len)
    layer = 2 * arch.hidden + (arch.heads + 2 * arch.groups) * arch.head_dim // tp + 3 * arch.ffn // tp
    return EngineMemory(
        weights=-(-model_parameters(arch) // tp) * size, kv_cache=kv_cache_bytes(arch, dtype, kv_tokens, tp),
        activations=batch * layer * size + 3 * FLOAT * max_num_seqs * arch.vocab, base=BASE)
