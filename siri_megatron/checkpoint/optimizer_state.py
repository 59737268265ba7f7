"""AdamW's state in one form, whichever of megatron's three optimizers holds it (float32, bfloat16, distributed).

    optimizer.state.exp_avg.NAME, optimizer.state.exp_avg_sq.NAME   split like parameter NAME, in the model's shape
    optimizer.state.fp32_param.NAME                                 main weights; absent if the model's are float32
    step                                                            updates made; one number

So what one optimizer saved another reads, in any layout: `learner.distributed_optimizer` may change at a resume.
Parameter groups (rates, betas, decay) are not kept: they are the configuration's.

Traps of megatron-core's distributed optimizer with torch's AdamW, which it knows without a `step` only:
- it copies checkpoints into every entry of AdamW's state, and fails with KeyError at `step`;
- its load_state_dict gives all parameters one and the same step tensor, which then counts each parameter's update.
Hence `step` is taken out of AdamW's state before the copy, and put back as a tensor for each parameter after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from siri_megatron.learner.mcore import DistributedOptimizer, parallel_state

# "fully reshardable": the shards of the data-parallel ranks are put together, on the first of them.
FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": True}
MAIN = "fp32_param"


def metadata() -> dict[str, Any]:
    """What megatron's `sharded_state_dict` methods want to be told."""
    return {**FORMAT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def sharded_optimizer(optimizer: Any, model: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """The state as megatron's sharded tensors. Collective.

    Args:
        model: the model's sharded state, which says how each parameter is split.
    """
    part = _single(optimizer)
    state = part.sharded_state_dict(model, is_loading=is_loading, metadata=metadata())
    if isinstance(part, DistributedOptimizer):
        found = state["param_state"] or {}  # of several data-parallel ranks the first saves
        tensors = {index: _in_plain_form(entry, part) for index, entry in found.items()}
    else:
        adamw = state.get("optimizer", state)  # bfloat16 keeps AdamW's state beside the main weights
        tensors = {index: entry for index, entry in adamw["state"].items() if index != "common_step"}
    main = {"main": state["fp32_from_fp16_params"]} if "fp32_from_fp16_params" in state else {}
    return {"state": tensors, **main, "step": _step(part)}


def load_optimizer(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Put a loaded state into the live optimizer. The model's weights must have been loaded before."""
    part = _single(optimizer)
    if isinstance(part, DistributedOptimizer):
        _load_distributed(part, loaded["state"])
    else:
        step = {"step": torch.tensor(loaded["step"])} if isinstance(part.optimizer, torch.optim.AdamW) else {}
        adamw = {"state": {index: entry | step for index, entry in loaded["state"].items()},
                 "param_groups": part.optimizer.state_dict()["param_groups"]}
        part.load_state_dict({"optimizer": adamw, "fp32_from_fp16_params": loaded["main"]} if "main" in loaded
                             else adamw)
    _set_step(part, loaded["step"])


def _single(optimizer: Any) -> Any:
    (part,) = getattr(optimizer, "chained_optimizers", [optimizer])  # several only with mixtures of experts
    return part


def _in_plain_form(entry: dict[str, Any], part: Any) -> dict[str, Any]:
    """Names of the plain optimizers: main weights are `fp32_param`, and left out where they are the model's own."""
    moments = {name: tensor for name, tensor in entry.items() if name != "param"}
    if not part.config.bf16:
        return moments
    main = entry["param"]
    return {**moments, MAIN: replace(main, key=main.key.replace("optimizer.state.param.", f"optimizer.state.{MAIN}."))}


def _load_distributed(part: Any, state: dict[int, dict[str, Any]]) -> None:
    for entry in part.optimizer.state.values():
        entry.pop("step", None)
    parameters = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
    part.load_parameter_state_from_fully_reshardable(
        {index: entry if MAIN in entry else {**entry, MAIN: parameters[index].detach()}
         for index, entry in state.items()})


def _step(part: Any) -> float:
    """Updates made, as AdamW counts them: torch's in each parameter's state, Transformer Engine's in each group."""
    adamw = part.optimizer
    if isinstance(adamw, torch.optim.AdamW):
        return max(state["step"].item() for state in adamw.state.values())
    return float(max(group.get("step", 0) for group in adamw.param_groups))


def _set_step(part: Any, step: float) -> None:
    adamw = part.optimizer
    if isinstance(adamw, torch.optim.AdamW):
        for state in adamw.state.values():
            state["step"] = torch.tensor(step)
    else:
        for group in adamw.param_groups:
            group["step"] = int(step)
