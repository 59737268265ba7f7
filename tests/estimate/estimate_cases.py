"""Runs to estimate, made without files. Not a test."""

from __future__ import annotations

from typing import Any

from published import PUBLISHED

from siri_megatron.config import RunConfig
from siri_megatron.estimate.gpus import Assumptions, find_gpu
from siri_megatron.estimate.lengths import Lengths, lognormal
from siri_megatron.estimate.rates import NOMINAL_CORE, Rates, gpu_rates
from siri_megatron.estimate.setup import Machine, Setup
from siri_megatron.learner.architecture import Architecture

SMALL = Architecture.of({"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 64, "num_hidden_layers": 8,
                         "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96, "vocab_size": 50,
                         "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
                         "rope_theta": 10000.0})


def published(name: str) -> Architecture:
    return Architecture.of(PUBLISHED[name].config)


def run_config(**sections: Any) -> RunConfig:
    """A small run; sections are laid over its own."""
    base: dict[str, Any] = {
        "name": "case", "model": {"path": "nowhere"}, "optimizer": {"lr": 1e-4},
        "budget": {"l_min": 32, "l_max": 128, "cycle_steps": 12, "cycles": 2},
        "rollout": {"prompts_per_step": 8, "samples_per_prompt": 4, "budget_grid": [32, 64, 128]},
        "data": {"max_prompt_tokens": 32}, "batching": {"tokens_per_micro_batch": 512},
        "evaluation": {"problems": 8, "budgets": [64, 128]}, "checkpoint": {"every_steps": 4}}
    return RunConfig.model_validate({key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
                                     for key, value in (base | sections).items()})


def cpu_setup(*, rates: Rates = NOMINAL_CORE, cores: int = 2, lengths: Lengths | None = None, kept: float = 1.0,
              arch: Architecture = SMALL, **sections: Any) -> Setup:
    return Setup(run_config(**sections), arch, Machine(rates, None, 1, 0, cores),
                 lengths or lognormal(60, 0.9, prompt=16), ((1, kept),))


def gpu_setup(name: str = "DeepSeek-R1-Distill-Qwen-1.5B", *, gpu: str = "h100", nodes: int | None = None,
              **sections: Any) -> Setup:
    """A long-context run of a published model on GPUs."""
    long = {"model": {"path": "nowhere", "dtype": "bfloat16"},
            "budget": {"l_min": 8192, "l_max": 16384, "cycle_steps": 640, "cycles": 3},
            "data": {"max_prompt_tokens": 1024}, "evaluation": {"budgets": [16384]},
            "rollout": {"prompts_per_step": 64, "samples_per_prompt": 8, "budget_grid": [8192]},
            "batching": {"tokens_per_micro_batch": 17408}, "engines": {"count": 4},
            "learner": {"dp": 4, "distributed_optimizer": True, "recompute": "full"}}
    merged = {key: {**long.get(key, {}), **value} if isinstance(value, dict) else value
              for key, value in (long | sections).items()}
    card = find_gpu(gpu)
    machine = Machine(gpu_rates(card, "bfloat16", Assumptions()), card, nodes, 8)
    return Setup(run_config(**merged), published(name), machine,
                 lognormal(6500, 0.93, prompt=256), ((1, 0.8),))
