"""Seconds per unit of work: from a data sheet and assumptions, or from a calibration. Pure.

Every estimate is work times rates, so a measured machine and a modelled one go through the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from siri_megatron.estimate.gpus import Assumptions, Gpu


@dataclass(frozen=True)
class Rates:
    """What a machine takes, seconds. FLOPs and bytes are those of one rank, or of one GPU of an engine."""

    origin: Literal["calibrated", "modelled"]
    machine: str
    """In words."""
    # a learner rank
    flop_s: float
    micro_batch_s: float
    """Fixed cost of a micro-batch on a stage."""
    optimizer_step_s: float
    """Fixed cost of an optimizer step."""
    memory_byte_s: float = 0.0
    """Device memory, in the optimizer's update."""
    link_byte_s: float = 0.0
    """Collectives within a node."""
    network_byte_s: float = 0.0
    """Collectives that cross nodes."""

    # an engine
    round_s: float = 0.0
    """Fixed cost of a decode round."""
    sequence_s: float = 0.0
    """Fixed cost of a sequence."""
    decode_flop_s: float = 0.0
    weight_byte_s: float = 0.0
    """Reading the weights once a round; the products of the round's tokens hide behind it, or it behind them."""
    context_byte_s: float = 0.0
    """Reading the KV cache."""

    # a step
    push_s: float = 0.0
    push_byte_s: float = 0.0
    verification_s: float = 0.0
    """Verification that outlasts generation."""
    overhead_s: float = 0.0
    """Planning, handing over, the rest."""
    commit_s: float = 0.0
    commit_byte_s: float = 0.0
    export_byte_s: float = 0.0
    evaluation_s: float = 0.0
    """Of an evaluation, beyond its generation."""


NOMINAL_CORE = Rates(
    "modelled", "nominal CPU cores", flop_s=1 / 25e9, micro_batch_s=10e-3, optimizer_step_s=20e-3, round_s=5e-3,
    sequence_s=1e-3, decode_flop_s=1 / 10e9, push_s=0.05, push_byte_s=1 / 1e9, overhead_s=0.01, commit_s=0.1,
    commit_byte_s=1 / 0.5e9, export_byte_s=1 / 0.5e9, evaluation_s=0.2)
"""A core of a server of 2023, from one measured: the order of magnitude only. `--calibrate` replaces it."""


def gpu_rates(gpu: Gpu, dtype: str, assumed: Assumptions) -> Rates:
    """The data sheet's rates, as far as they are assumed to be reached."""
    flops = gpu.flops(dtype)
    return Rates(
        "modelled", gpu.name.upper(), flop_s=1 / (flops * assumed.training),
        micro_batch_s=assumed.micro_batch_s, optimizer_step_s=assumed.optimizer_step_s,
        memory_byte_s=1 / (gpu.bandwidth * assumed.decoding), link_byte_s=1 / (gpu.link * assumed.links),
        network_byte_s=1 / (gpu.network * assumed.links), round_s=assumed.round_s, sequence_s=assumed.sequence_s,
        decode_flop_s=1 / (flops * assumed.prefill), weight_byte_s=1 / (gpu.bandwidth * assumed.decoding),
        context_byte_s=1 / (gpu.bandwidth * assumed.decoding), push_s=assumed.push_s,
        push_byte_s=1 / (gpu.network * assumed.links), verification_s=assumed.verification_s,
        overhead_s=assumed.overhead_s, commit_byte_s=1 / assumed.disk, export_byte_s=1 / assumed.disk)
