"""What an estimate is made for: a run on a machine, with lengths. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from siri_megatron.batching.lengths import MicroBytes
from siri_megatron.config import RunConfig
from siri_megatron.estimate.activations import Spec
from siri_megatron.estimate.capacity import micro_bytes
from siri_megatron.estimate.generation import Decoding
from siri_megatron.estimate.gpus import Gpu
from siri_megatron.estimate.lengths import Lengths
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.estimate.rates import Rates
from siri_megatron.estimate.training import Pipeline
from siri_megatron.estimate.work import ModelWork
from siri_megatron.learner.architecture import Architecture


@dataclass(frozen=True)
class Machine:
    """Where a run is to run."""

    rates: Rates
    gpu: Gpu | None
    """None: a CPU machine."""
    nodes: int | None
    """None: as many as the run needs."""
    gpus_per_node: int
    """0: all is one node, as on a CPU machine."""
    cores: int = 0
    """Of a CPU machine."""
    memory: int | None = None
    """Bytes of a CPU machine, which learners and engines share; None: not asked."""

    @property
    def limit(self) -> float:
        """GPUs that there are."""
        return math.inf if self.nodes is None else self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Setup:
    """A run, the model's shape, the machine, and how long responses are."""

    config: RunConfig
    arch: Architecture
    machine: Machine
    lengths: Lengths
    kept: tuple[tuple[int, float], ...]
    """(cap, share of the groups that carry a signal and are trained on), caps ascending; between them interpolated."""

    def kept_at(self, cap: int) -> float:
        """A tight cap leaves more groups without a right answer."""
        caps, shares = zip(*self.kept, strict=True)
        return float(np.interp(cap, caps, shares))

    @property
    def work(self) -> ModelWork:
        return ModelWork.of(self.arch, self.config.model.dtype)

    @property
    def engine_gpus(self) -> int:
        """GPUs of one engine."""
        return self.config.engines.tp

    @property
    def learners(self) -> int:
        return self.config.learner.world_size

    @property
    def fleet_gpus(self) -> int:
        return self.config.engines.count * self.engine_gpus

    @property
    def need(self) -> int:
        """GPUs that have something to do."""
        return self.learners + self.fleet_gpus

    @property
    def devices(self) -> int:
        """GPUs that are paid for; on a CPU machine the machine itself."""
        if self.machine.gpu is None:
            return 1
        return max(self.need, (self.machine.nodes or 0) * self.machine.gpus_per_node)

    @property
    def weight_bytes(self) -> int:
        """Of the whole model in its dtype."""
        return model_parameters(self.arch) * self.work.item

    @property
    def spec(self) -> Spec:
        """The layer spec that `auto` stands for."""
        wanted = self.config.model.spec
        fused = self.machine.gpu is not None and self.config.model.dtype == "bfloat16"
        return wanted if wanted != "auto" else "te" if fused else "local"

    @property
    def micro_bytes(self) -> MicroBytes:
        """What a micro-batch takes, from which the capacity at a cap follows."""
        return micro_bytes(self.arch, self.config.learner, self.config.model.dtype, spec=self.spec,
                           mode=self.config.batching.mode, algorithm=self.config.algorithm)

    @property
    def pipeline(self) -> Pipeline:
        layout = self.config.learner
        crowd = self._crowd(layout.world_size * layout.threads)
        rates = replace(self.machine.rates, flop_s=self.machine.rates.flop_s * crowd,
                        micro_batch_s=self.machine.rates.micro_batch_s * crowd)
        return Pipeline(self.work, layout, rates, self.machine.gpus_per_node)

    @property
    def decoding(self) -> Decoding:
        costs = Decoding.of(self.work, self.machine.rates, self.engine_gpus)
        crowd = self._crowd(self.config.engines.count)
        return replace(costs, round_s=costs.round_s * crowd, token_s=costs.token_s * crowd,
                       context_s=costs.context_s * crowd, sequence_s=costs.sequence_s * crowd,
                       prompt_token_s=costs.prompt_token_s * crowd)

    def _crowd(self, threads: int) -> float:
        """How many threads share a core."""
        return max(1.0, threads / self.machine.cores) if self.machine.cores else 1.0


def argument(arguments: tuple[str, ...], *names: str) -> str | None:
    """Value of a command-line argument (`--name value` or `--name=value`); None if it is not there."""
    for place, text in enumerate(arguments):
        name, given, value = text.partition("=")
        if name in names:
            return value if given else next(iter(arguments[place + 1:]), "")
    return None
