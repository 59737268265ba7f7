"""Can an engine be cut over so many workers? Pure: vLLM's rules for tensor parallelism, before it starts.

    heads                 % tp == 0   (config/model.py: verify_with_parallel_config)
    key heads             % tp == 0, or tp % key heads == 0: each is then copied to several workers (qwen2.py, llama.py)
    ffn                   % tp == 0   (linear.py: ColumnParallelLinear)
    vocabulary, padded    % tp == 0   (vocab_parallel_embedding.py: padded to a multiple of 64)

Invariant:
- refused_exactly: an engine is refused if and only if one of these does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.layout import Fault

VOCAB_PADDING = 64


def engine_faults(arch: Architecture, tp: int) -> Iterator[Fault]:
    """Every rule that an engine of `tp` workers breaks."""
    padded = -(-arch.vocab // VOCAB_PADDING) * VOCAB_PADDING
    sizes = {"num_attention_heads": arch.heads, "intermediate_size": arch.ffn, "vocab_size (padded)": padded}
    for field, size in sizes.items():
        if size % tp:
            yield Fault(f"engines.tp={tp} does not divide the model's {field}={size}", f"{field} % engines.tp == 0")
    if arch.groups % tp and tp % arch.groups:
        yield Fault(f"engines.tp={tp} and the model's num_key_value_heads={arch.groups}: neither divides the other",
                    "a worker holds whole key heads, or one key head is copied to several workers")


def check_engines(arch: Architecture, tp: int) -> None:
    """Refuse what vLLM would refuse after a minute of starting.

    Raises:
        ConfigError: the engines cannot be cut so; names both numbers and the nearest size that works.
    """
    for fault in engine_faults(arch, tp):
        works = next(size for size in range(tp, 0, -1) if not any(engine_faults(arch, size)))
        raise ConfigError(fault.what, rule=fault.rule, fix=f"set engines.tp={works}")
