"""The model and how it is trained: starting weights, layout of the learners, optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from siri_megatron.config.base import Beta, Section


class ModelConfig(Section):
    path: Path
    """Hugging Face model directory (config.json, safetensors, tokenizer) that the run starts from."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter dtype of learners and engines."""
    spec: Literal["auto", "local", "te"] = "auto"
    """Megatron layer spec: `te` needs a GPU, `local` is the CPU one, `auto` takes `te` on a GPU in bfloat16."""
    fingerprint: str = ""
    """Filled in at start from the directory's content; a resume from other starting weights is refused."""


class LearnerConfig(Section):
    tp: int = Field(1, ge=1)
    """Tensor-parallel size."""
    pp: int = Field(1, ge=1)
    """Pipeline-parallel size."""
    dp: int = Field(1, ge=1)
    """Data-parallel size; the world is tp x pp x dp x cp."""
    cp: int = Field(1, ge=1)
    """Context-parallel size: every sequence is cut over so many ranks. Saves memory with `model.spec=te` only."""
    vpp: int = Field(1, ge=1)
    """Virtual pipeline: model chunks a stage (interleaved schedule, smaller bubble); needs pp > 1."""
    sequence_parallel: bool = False
    """Cut what lies between the matrix products along the sequence over the tensor-parallel ranks; needs tp > 1."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, those of the core attention, or those of whole layers."""
    threads: int = Field(1, ge=1)
    """CPU threads a learner."""
    distributed_optimizer: bool = False
    """Split AdamW's state over the data-parallel ranks (megatron's distributed optimizer)."""
    overlap: bool = False
    """Reduce gradients during the backward pass; with distributed_optimizer, gather weights during the forward pass."""
    pin_cores: bool = False
    """Pin learner i (and engine i) to core i modulo the number of cores."""
    collective_timeout_s: float = Field(180.0, gt=0)
    """Timeout of the model's collectives. In a push, ranks that share the model wait in one for what rank 0 sends."""
    control_timeout_s: float = Field(600.0, gt=0)
    """Longest wait on the control plane for rank 0's next decision while its heartbeat is alive, beyond what rank 0
    itself may wait for engines (rollout, evaluation, push)."""
    heartbeat_timeout_s: float = Field(30.0, gt=0)
    """Silence after which a process hangs: of rank 0 for the other ranks, of any but an engine for the supervisor."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def micro_batch_multiple(self) -> int:
        """A rank's micro-batches of an optimizer step are a multiple of this.

        Twice the stages keeps the pipeline's bubble small. A virtual pipeline asks for a multiple of pp, and with
        exactly pp it hangs on gloo: the first stage is still warming up where the last one expects an exchange.
        """
        return 1 if self.pp == 1 else 2 * self.pp


class OptimizerConfig(Section):
    lr: float = Field(gt=0)
    """Learning rate (constant after warm-up in RL)."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, optimizer steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW betas."""
    eps: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay (norms and biases excluded)."""
    clip_grad: float = Field(1.0, gt=0)
    """Global gradient-norm clip."""
