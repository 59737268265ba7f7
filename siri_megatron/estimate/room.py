"""Does a run fit its machine? Memory of learners and engines against what there is. Pure.

A learner rank and an engine rank have a GPU each; on a CPU machine all share the memory (`estimate.host`).
A micro-batch is taken as full as its capacity allows, at the cap that is asked about. The KV cache is what the engine's
weights and working memory leave of `--gpu-memory-utilization` (0.9 unless engines.extra_args says otherwise), on CPU
engines.kv_cache_gib.

Invariants:
- worst_stage: the learner's need is that of its fullest pipeline stage.
- said_why: whatever does not fit is named with both values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from siri_megatron.batching.lengths import capacity_at
from siri_megatron.estimate.engine import EngineMemory, engine_memory, kv_cache_bytes
from siri_megatron.estimate.host import Host
from siri_megatron.estimate.memory import RankMemory, learner_memory
from siri_megatron.estimate.setup import Setup, argument

UTILISATION = 0.9
"""vLLM's default for --gpu-memory-utilization."""


@dataclass(frozen=True)
class Room:
    """Bytes of the fullest learner rank and of an engine rank at a cap."""

    learner: RankMemory
    """Of the fullest pipeline stage."""
    stage: int
    engine: EngineMemory
    kv_tokens: int
    """Tokens that an engine's KV cache holds; at most what its sequences can ask for."""


def room_at(setup: Setup, cap: int) -> Room:
    """Memory at this cap.

    Raises:
        ConfigError: the capacity cannot hold the longest sample.
    """
    stages = learner_stages(setup, cap)
    fullest = max(range(len(stages)), key=lambda stage: stages[stage].total)
    tokens = kv_tokens(setup)
    return Room(stages[fullest], fullest, _engine(setup, tokens), tokens)


def learner_stages(setup: Setup, cap: int) -> tuple[RankMemory, ...]:
    """Memory of a rank of every pipeline stage, with micro-batches as full as they may be at this cap."""
    config, layout = setup.config, setup.config.learner
    capacity = capacity_at(cap, tokens_per_micro_batch=config.batching.tokens_per_micro_batch, cp=layout.cp,
                           l_max=config.budget.l_max, max_prompt=config.data.max_prompt_tokens,
                           micro_bytes=setup.micro_bytes)
    return learner_memory(setup.arch, layout, config.model.dtype, spec=setup.spec, mode=config.batching.mode,
                          tokens=capacity, longest=config.data.max_prompt_tokens + cap, algorithm=config.algorithm,
                          micro_batches=2 * layout.pp * layout.vpp)


def kv_tokens(setup: Setup) -> int:
    """Tokens that the KV cache of an engine holds."""
    if setup.machine.gpu is None:
        room = int(setup.config.engines.kv_cache_gib * 2**30) // setup.engine_gpus
    else:
        share = float(argument(setup.config.engines.extra_args, "--gpu-memory-utilization") or UTILISATION)
        room = int(share * setup.machine.gpu.memory) - _engine(setup, 0).total
    most = setup.config.engines.max_num_seqs * setup.config.max_model_len
    return max(0, min(most, room // kv_cache_bytes(setup.arch, setup.config.model.dtype, 1, setup.engine_gpus)))


def misfits(setup: Setup) -> Iterator[str]:
    """What of the run does not fit at its largest cap, a sentence each."""
    if setup.machine.gpu is None:
        yield from _too_much_for_the_host(setup)
        return
    if setup.need > setup.machine.limit:
        yield (f"{setup.learners} learners + {setup.fleet_gpus} GPUs of engines = {setup.need} GPUs, "
               f"{setup.machine.nodes} x {setup.machine.gpus_per_node} = {setup.machine.limit} are there")
    room, memory = room_at(setup, setup.config.budget.l_max), setup.machine.gpu.memory
    if (learner := room.learner.on_device) > memory:
        yield (f"a learner rank of stage {room.stage} takes {gigabytes(learner)} at cap {setup.config.budget.l_max}, "
               f"{setup.machine.gpu.name.upper()} has {gigabytes(memory)}")
    if not cache_suffices(setup):
        yield (f"an engine of {setup.engine_gpus} GPU(s) keeps room for {room.kv_tokens:,} tokens of KV cache beside "
               f"{gigabytes(room.engine.weights)} of weights a GPU, one sequence may have "
               f"{setup.config.max_model_len:,}")


def learner_fits(setup: Setup) -> bool:
    """A rank of every stage fits a GPU at the largest cap."""
    return setup.machine.gpu is None or all(stage.on_device <= setup.machine.gpu.memory
                                            for stage in learner_stages(setup, setup.config.budget.l_max))


def cache_suffices(setup: Setup) -> bool:
    """An engine's KV cache holds the longest sequence."""
    return kv_tokens(setup) >= setup.config.max_model_len


def host_of(setup: Setup) -> Host:
    """Learners and engines on one CPU machine."""
    return Host(setup.arch, setup.weight_bytes, engines=True)


def _too_much_for_the_host(setup: Setup) -> Iterator[str]:
    need, memory = host_of(setup).need(setup.config), setup.machine.memory
    if memory is not None and need > memory:
        yield f"the run takes {gigabytes(need)}, the machine has {gigabytes(memory)}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _engine(setup: Setup, tokens: int) -> EngineMemory:
    return engine_memory(setup.arch, setup.config.model.dtype, tp=setup.engine_gpus, kv_tokens=tokens,
                         max_model_len=setup.config.max_model_len, max_num_seqs=setup.config.engines.max_num_seqs)
