"""Does a run fit the memory of one machine, where learners and engines share it (CPU)? And what change would make it.

Invariants:
- nearest_fits: the proposed change itself fits.
- smallest_change_first: one that costs only speed of the learner (smaller micro-batches) goes before less KV cache,
  that before recomputation, that before a smaller fleet; two changes only where no single one is enough.
- refused_exactly: a run is refused if and only if its need is above the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import ceil, floor
from typing import Any

from siri_megatron.batching.lengths import round_up, row_quantum
from siri_megatron.config import RunConfig
from siri_megatron.errors import gib
from siri_megatron.estimate.engine import kv_cache_bytes
from siri_megatron.estimate.memory import RankMemory, learner_memory
from siri_megatron.learner.architecture import Architecture

ENGINE_BYTES = 960 << 20
"""An engine on CPU without its KV cache: two processes, server and core, each with Python, torch and vLLM. Measured:
417 + 561 MiB of anonymous memory in a run of `configs/tiny.yaml`. vLLM fills the KV cache with zeros at start, so that
all of it is taken whatever is used."""
CORE_BYTES = 417 << 20
"""A core whose workers (`engines.tp` > 1) are processes of their own: it holds no model."""
WORKER_BYTES = 561 << 20
"""One of these workers without its weights and KV cache."""
TOKENS = "batching.tokens_per_micro_batch"
REST_BYTES = 280 << 20
"""Supervisor, collector and their guards. Measured: 99 + 145 + 5 x 7 MiB."""


@dataclass(frozen=True)
class Part:
    """One thing that takes memory."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Host:
    """A run on one machine.

    Attributes:
        arch: of the model; None: no learners (rollouts, evaluation).
        weights: bytes of the model's weights, in the engines' dtype.
        engines: the run has engines.
    """

    arch: Architecture | None
    weights: int
    engines: bool

    def parts(self, config: RunConfig) -> list[Part]:
        """What takes memory at the peak, the largest first."""
        parts = [*self._learners(config), *(self._engines(config) if self.engines else ())]
        return sorted(parts, key=lambda part: -part.bytes)

    def need(self, config: RunConfig) -> int:
        return sum(part.bytes for part in self.parts(config))

    def nearest(self, config: RunConfig, limit: int) -> str:
        """A change of the configuration under which the run fits, as overrides; what is missing where none does."""
        least = self.need(config)
        for chosen in (some for count in (1, 2, 3) for some in combinations(CHANGES, count)):
            keys: dict[str, Any] = {}
            for change in sorted(chosen, key=AMOUNTS.__contains__):  # how far these must go depends on the others
                keys |= change(self, changed(config, keys), limit)
            least = min(least, need := self.need(changed(config, keys)))
            if need <= limit:
                return " ".join(f"{key}={_text(value)}" for key, value in keys.items())
        return f"take a machine with {gib(least)}, or a smaller model"

    def _learners(self, config: RunConfig) -> Iterator[Part]:
        if self.arch is None:
            return
        stages, count = learner_stages(config, self.arch), config.learner.world_size
        each = count // config.learner.pp
        kept = sum(stage.parameters + stage.gradients + stage.optimizer + stage.reference for stage in stages)
        passing = sum(max(stage.micro_batches, stage.between) for stage in stages)
        yield Part(f"weights, gradients and optimizer of {count} learners", each * kept)
        yield Part(f"micro-batches of {fullest_micro_batch(config)} tokens in {count} learners", each * passing)
        yield Part(f"{count} learner processes", each * sum(stage.base for stage in stages))

    def _engines(self, config: RunConfig) -> Iterator[Part]:
        count = config.engines.count
        yield Part(f"{count} engines x engines.kv_cache_gib={config.engines.kv_cache_gib:g}",
                   int(count * config.engines.kv_cache_gib * 2**30))
        yield Part(f"weights of {count} engines", count * self.weights)
        yield Part(f"{count} engine processes and the collector", count * engine_bytes(config.engines.tp) + REST_BYTES)


def engine_bytes(tp: int) -> int:
    """The processes of an engine with so many workers."""
    return ENGINE_BYTES if tp == 1 else ENGINE_BYTES + CORE_BYTES + (tp - 1) * WORKER_BYTES


Change = Callable[[Host, RunConfig, int], dict[str, Any]]
"""(run, its configuration, limit) -> overrides that take less memory; empty where it has none."""


def smaller_micro_batches(host: Host, config: RunConfig, limit: int) -> dict[str, Any]:
    """The largest that fit, or those that just hold the longest sample."""
    quantum = row_quantum(config.learner.cp)
    low = round_up(config.data.max_prompt_tokens + config.budget.l_max, quantum) // quantum
    high = fullest_micro_batch(config) // quantum
    if host.arch is None or high <= low:
        return {}
    while low < high:
        middle = (low + high + 1) // 2
        if host.need(changed(config, {TOKENS: middle * quantum})) <= limit:
            low = middle
        else:
            high = middle - 1
    return {TOKENS: low * quantum}


def smaller_kv_cache(host: Host, config: RunConfig, limit: int) -> dict[str, Any]:
    """What the rest leaves each engine, GiB; at least room for one sequence."""
    own, tp = config.engines.kv_cache_gib, config.engines.tp
    left = (limit - host.need(config)) / config.engines.count / 2**30 + own
    one = kv_cache_bytes(host.arch, config.model.dtype, config.max_model_len, tp) * tp / 2**30 if host.arch else 0.0
    size = max(floor(left * 100), ceil(one * 100), 1) / 100
    return {"engines.kv_cache_gib": size} if host.engines and size < own else {}


def recompute(host: Host, config: RunConfig, _: int) -> dict[str, Any]:
    return {"learner.recompute": "full"} if host.arch and config.learner.recompute != "full" else {}


def shard_optimizer(host: Host, config: RunConfig, _: int) -> dict[str, Any]:
    layout = config.learner
    shared = layout.dp * layout.cp > 1 and not layout.distributed_optimizer
    return {"learner.distributed_optimizer": True} if host.arch and shared else {}


def one_engine(host: Host, config: RunConfig, _: int) -> dict[str, Any]:
    return {"engines.count": 1} if host.engines and config.engines.count > 1 else {}


def one_replica(host: Host, config: RunConfig, _: int) -> dict[str, Any]:
    return {"learner.dp": 1} if host.arch and config.learner.dp > 1 else {}


AMOUNTS: tuple[Change, ...] = (smaller_micro_batches, smaller_kv_cache)
CHANGES: tuple[Change, ...] = (*AMOUNTS, recompute, shard_optimizer, one_engine, one_replica)
"""The least first."""


def fullest_micro_batch(config: RunConfig) -> int:
    """Tokens of the largest micro-batch there can be: the capacity at l_max, or all rows of an optimizer step."""
    longest = config.data.max_prompt_tokens + config.budget.l_max
    groups = ceil(config.rollout.prompts_per_step / config.algorithm.mini_batches)
    rows = groups * config.rollout.samples_per_prompt * round_up(longest, row_quantum(config.learner.cp))
    return min(config.batching.tokens_per_micro_batch, rows)


def learner_stages(config: RunConfig, arch: Architecture, *, spec: str = "local") -> tuple[RankMemory, ...]:
    """A learner rank of each pipeline stage at l_max, with full micro-batches."""
    return learner_memory(
        arch, config.learner, config.model.dtype, spec="te" if spec == "te" else "local", mode=config.batching.mode,
        tokens=fullest_micro_batch(config), longest=config.data.max_prompt_tokens + config.budget.l_max,
        micro_batches=2 * config.learner.pp * config.learner.vpp, algorithm=config.algorithm)


def changed(config: RunConfig, keys: dict[str, Any]) -> RunConfig:
    """With other values of `section.key`."""
    for name, value in keys.items():
        section, key = name.split(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={key: value})})
    return config


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
