"""DDP, AdamW and the learning rate, all of it megatron-core's own.

With `learner.distributed_optimizer`, each data-parallel rank updates its own shard of the weights; with
`learner.overlap` on top, the shards of the others come only with the next forward pass. Until then a rank's weights are
part new, part old: whoever reads them calls `gather_weights` first (`Learner.export_tensors` and checkpoints do).
"""

from __future__ import annotations

from typing import Any

import torch

from siri_megatron.config import LearnerConfig, OptimizerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner import mcore

BUCKET_PARAMETERS: int | None = None
"""Parameters that are reduced or gathered together when communication is overlapped; None: megatron's default."""


def wrap_data_parallel(chunks: list[Any], config: Any, layout: LearnerConfig) -> list[Any]:
    """Wrap model chunks for gradient reduction and tell the schedule how to use them.

    Gradients are *summed* over data-parallel ranks and never divided by a number of tokens: each token's weight in the
    loss holds the global denominator already. So `finalize_model_grads` is called without its token count.
    """
    settings = mcore.DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, average_in_collective=False, bucket_size=BUCKET_PARAMETERS,
        use_distributed_optimizer=layout.distributed_optimizer, overlap_grad_reduce=layout.overlap,
        overlap_param_gather=layout.distributed_optimizer and layout.overlap)
    wrapped = [mcore.DistributedDataParallel(config, settings, chunk, disable_bucketing=i > 0)
               for i, chunk in enumerate(chunks)]
    config.finalize_model_grads_func = _finalize
    config.no_sync_func = _one_or_list([chunk.no_sync for chunk in wrapped])
    if layout.overlap:  # later pipeline stages reduce in one go, in the bubble behind their last backward pass
        config.grad_sync_func = _one_or_list([chunk.start_grad_sync for chunk in wrapped])
    return wrapped


def gather_weights(wrapped: list[Any]) -> None:
    """Complete this rank's weights after an optimizer step. Collective; does nothing if they are complete already."""
    for chunk in wrapped:
        if chunk.ddp_config.overlap_param_gather:
            for bucket in chunk.bucket_groups:
                bucket.finish_param_sync(skip_next_bucket_dispatch=True)


def build_optimizer(settings: OptimizerConfig, wrapped: list[Any], config: Any) -> Any:
    """AdamW without weight decay on norms and biases, gradient-norm clipping over the whole model.

    Raises:
        ConfigError: a fused AdamW is installed that cannot run here.
    """
    check_adam(mcore.Adam, next(wrapped[0].parameters()).device)
    options = mcore.OptimizerConfig(
        optimizer="adam", lr=settings.lr, min_lr=settings.lr, weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0], adam_beta2=settings.betas[1], adam_eps=settings.eps,
        clip_grad=settings.clip_grad, bf16=config.params_dtype is torch.bfloat16, params_dtype=config.params_dtype,
        use_distributed_optimizer=wrapped[0].ddp_config.use_distributed_optimizer,
        overlap_param_gather=wrapped[0].ddp_config.overlap_param_gather)
    optimizer = mcore.get_megatron_optimizer(options, wrapped,
                                             config_overrides=mcore.get_standard_config_overrides(options))
    for group in optimizer.param_groups:  # wd_mult is applied by megatron's scheduler only, which is not used here
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    config.grad_scale_func = optimizer.scale_loss
    fill_state(optimizer)
    return optimizer


def check_adam(adam: type, device: torch.device) -> None:
    """megatron-core takes the fused AdamW of Transformer Engine or Apex wherever one is installed. Where CUDA is played
    by the CPU it is made without complaint, and fails in its kernel at the first step, after a whole collection.

    Raises:
        ConfigError: the weights are on a CPU, and AdamW is not torch's.
    """
    if device.type == "cpu" and not adam.__module__.startswith("torch."):
        raise ConfigError(f"megatron-core's AdamW is {adam.__module__}.{adam.__name__}, but the weights are on a CPU",
                          rule="megatron-core takes the fused AdamW of Transformer Engine or Apex wherever one is "
                               "installed, and it needs a GPU",
                          fix="train in an environment without them (`make setup` makes one), or where a GPU is")


def fill_state(optimizer: Any) -> None:
    """Give AdamW at once the zeros that it makes at its first step, so that a checkpoint before that step is whole.

    megatron's `init_state_fn` makes the moments, but not the step count of torch's AdamW; and its checkpoints leave
    out a count of 0.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.AdamW):
            for state in part.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))


def learning_rate(lr: float, warmup_steps: int, updates: int) -> float:
    """Linear warm-up over `warmup_steps` updates to `lr`, that of the phase. updates: optimizer steps made so far."""
    return lr * min(1.0, (updates + 1) / max(1, warmup_steps))


def set_learning_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _one_or_list(functions: list[Any]) -> Any:
    """The form in which megatron's schedules want a function of each model chunk."""
    return functions[0] if len(functions) == 1 else functions


def _finalize(chunks: list[Any], num_tokens: Any = None, **groups: Any) -> None:
    mcore.finalize_model_grads(chunks, None, **groups)
