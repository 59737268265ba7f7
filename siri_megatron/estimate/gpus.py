"""Accelerators as their data sheets describe them, and what is assumed of how much of that a run gets.

Sources: NVIDIA H100, H200 and A100 Tensor Core GPU data sheets (SXM, dense rates, without sparsity); DGX H100 and
DGX A100 data sheets for the network (one 400 or 200 Gb/s adapter a GPU). Links count one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    bfloat16: float
    """FLOP/s of dense matrix products in bfloat16."""
    float32: float
    """FLOP/s in float32, without TF32."""
    bandwidth: float
    """Bytes/s of device memory."""
    memory: float
    """Bytes, as on the data sheet (10^9): what CUDA, NCCL and fragmentation take lies within the few GB that the card
    has beyond that."""
    link: float
    """Bytes/s to another GPU of the node (NVLink), one direction."""
    network: float
    """Bytes/s to a GPU of another node, one direction."""

    def flops(self, dtype: str) -> float:
        return self.float32 if dtype == "float32" else self.bfloat16


GPUS = {gpu.name: gpu for gpu in (
    Gpu("a100", 312e12, 19.5e12, 2.039e12, 80e9, 300e9, 25e9),
    Gpu("h100", 989e12, 67e12, 3.35e12, 80e9, 450e9, 50e9),
    Gpu("h200", 989e12, 67e12, 4.8e12, 141e9, 450e9, 50e9),
)}


@dataclass(frozen=True)
class Assumptions:
    """Shares of the data sheet's rates, and fixed costs, that the GPU model takes for granted. None is measured."""

    training: float = 0.40
    """Of the FLOP/s in training: between the 44-52 % of Narayanan et al. (2104.04473, table 1, A100) for large dense
    models and what short rollouts in small micro-batches leave of it."""
    prefill: float = 0.40
    """Of the FLOP/s when prompts are read and, with many sequences, in decoding."""
    decoding: float = 0.60
    """Of the memory bandwidth in decoding."""
    links: float = 0.70
    """Of NVLink and network in collectives."""
    round_s: float = 4e-3
    """Fixed cost of a decode round: scheduling, launches, sampling, log-probs."""
    sequence_s: float = 1e-3
    """Fixed cost of a sequence on its engine: request, tokens in and out."""
    micro_batch_s: float = 10e-3
    """Fixed cost of a micro-batch on a pipeline stage: launches, building the batch."""
    optimizer_step_s: float = 50e-3
    """Fixed cost of an optimizer step: gradient norm, clipping, learning rate."""
    push_s: float = 1.0
    """Fixed cost of a weight push: pausing the engines, checks, emptying the prefix cache."""
    verification_s: float = 1.0
    """Verifying the last groups, after the engines have finished."""
    overhead_s: float = 0.5
    """Planning, handing over and the rest of a step."""
    disk: float = 2e9
    """Bytes/s of all ranks together into checkpoints and exports."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu {name} is not in the table", rule=f"--gpu is one of {', '.join(GPUS)}",
                          fix="add its data sheet to siri_megatron/estimate/gpus.py, or calibrate on that machine")
    return GPUS[name.lower()]
