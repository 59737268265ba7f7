"""Bytes that learners exchange, and over which wires. Pure.

Ring collectives: an all-reduce of b bytes over t ranks sends 2 b (t - 1) / t from each, a gather or a scatter half of
it. Per layer and micro-batch, tensor parallelism all-reduces the activations twice forward and twice backward
(Narayanan et al., 2104.04473, section 3.2), with sequence parallelism as gathers and scatters of the same volume
(Korthikanti et al., 2205.05198); context parallelism passes keys and values round the ring, and in the backward pass
their gradients too; a pipeline hands one activation on and one gradient back.

Megatron numbers ranks tp, cp, dp, pp from the inside out, so a group crosses nodes as soon as it and all inside of it
have more ranks than a node has GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.config import LearnerConfig
from siri_megatron.estimate.rates import Rates
from siri_megatron.estimate.work import ModelWork

GRADIENT_BYTES = 4
UPDATE_BYTES = 28
"""AdamW reads and writes a master weight and two moments in float32, and reads a gradient; the weight itself comes on
top."""


@dataclass(frozen=True)
class Exchange:
    """What a layout sends over a machine's wires."""

    work: ModelWork
    layout: LearnerConfig
    rates: Rates
    gpus_per_node: int

    def micro_batch_s(self, tokens: float) -> float:
        """Seconds of a rank for one micro-batch, forward and backward."""
        layout, work = self.layout, self.work
        layers, activation = work.layers / layout.pp, tokens / layout.cp * work.hidden * work.item
        again = layout.recompute == "full"
        tensor = layers * (6 if again else 4) * 2 * _others(layout.tp) * activation
        key_value = tokens * work.key_value_width * work.item / layout.tp
        context = layers * (4 if again else 3) * _others(layout.cp) * key_value
        pipeline = 2 * layout.vpp * activation / (layout.tp if layout.sequence_parallel else 1) * (layout.pp > 1)
        return (tensor * self._byte_s(layout.tp) + context * self._byte_s(layout.tp * layout.cp)
                + pipeline * self._byte_s(layout.world_size))

    def gradients_s(self) -> float:
        """Seconds to reduce the gradients of an optimizer step; behind the backward pass if the layout overlaps."""
        layout, replicas = self.layout, self.layout.dp * self.layout.cp
        if layout.overlap:
            return 0.0
        item = GRADIENT_BYTES + (self.work.item if layout.distributed_optimizer else GRADIENT_BYTES)
        return _others(replicas) * self.rank_weights * item * self._byte_s(layout.tp * replicas)

    def update_s(self) -> float:
        """Seconds that AdamW takes to read and write its state."""
        shards = self.layout.dp * self.layout.cp if self.layout.distributed_optimizer else 1
        return self.rank_weights / shards * (UPDATE_BYTES + self.work.item) * self.rates.memory_byte_s

    @property
    def rank_weights(self) -> float:
        """Of the fullest stage, on each of its tensor-parallel ranks."""
        return (self.work.layers / self.layout.pp * self.work.layer_weights + self.work.head_weights) / self.layout.tp

    def _byte_s(self, span: int) -> float:
        crosses = self.gpus_per_node and span > self.gpus_per_node
        return self.rates.network_byte_s if crosses else self.rates.link_byte_s


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks
