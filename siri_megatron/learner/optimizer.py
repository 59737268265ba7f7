"""DDP, AdamW and the learning rate, all of it megatron-core's own."""

from __future__ import annotations

from typing import Any

import torch

from siri_megatron.config import OptimizerConfig
from siri_megatron.learner import mcore


def wrap_data_parallel(chunks: list[Any], config: Any) -> list[Any]:
    """Wrap model chunks for gradient reduction and tell the schedule how to use them.

    Gradients are *summed* over data-parallel ranks and never divided by a number of tokens: each token's weight in the
    loss holds the global denominator already. So `finalize_model_grads` is called without its token count.
    """
    settings = mcore.DistributedDataParallelConfig(grad_reduce_in_fp32=True, average_in_collective=False)
    wrapped = [mcore.DistributedDataParallel(config, settings, chunk, disable_bucketing=i > 0)
               for i, chunk in enumerate(chunks)]
    config.finalize_model_grads_func = _finalize
    config.no_sync_func = wrapped[0].no_sync
    return wrapped


def build_optimizer(settings: OptimizerConfig, wrapped: list[Any], config: Any) -> Any:
    """AdamW without weight decay on norms and biases, gradient-norm clipping over the whole model."""
    options = mcore.OptimizerConfig(
        optimizer="adam", lr=settings.lr, min_lr=settings.lr, weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0], adam_beta2=settings.betas[1], adam_eps=settings.eps,
        clip_grad=settings.clip_grad, bf16=config.params_dtype is torch.bfloat16, params_dtype=config.params_dtype)
    optimizer = mcore.get_megatron_optimizer(options, wrapped,
                                             config_overrides=mcore.get_standard_config_overrides(options))
    for group in optimizer.param_groups:  # wd_mult is applied by megatron's scheduler only, which is not used here
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    config.grad_scale_func = optimizer.scale_loss
    fill_state(optimizer)
    return optimizer


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


def learning_rate(settings: OptimizerConfig, updates: int) -> float:
    """Linear warm-up over `warmup_steps` updates, then constant. updates: optimizer steps made so far."""
    return settings.lr * min(1.0, (updates + 1) / max(1, settings.warmup_steps))


def set_learning_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _finalize(chunks: list[Any], num_tokens: Any = None, **groups: Any) -> None:
    mcore.finalize_model_grads(chunks, None, **groups)
