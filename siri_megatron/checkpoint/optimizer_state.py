"""AdamW's state in one form, whichever of megatron's three optimizers holds it (float32, bfloat16, distributed).

    optimizer.state.exp_avg.NAME, optimizer.state.exp_avg_sq.NAME   split like parameter NAME, in the model's shape
    optimizer.state.fp32_param.NAME                                 main weights; absent if the model's are float32
    step                                                            updates made; one number

So what one optimizer saved another reads, in any layout: `learner.distributed_optimizer` may change at a resume.
Parameter groups (rates, betas, decay) are not kept: they are the configuration's.

A distributed optimizer's shards are put together here, bucket by bucket, on the first data-parallel rank, and not by
megatron-core's "fully reshardable" format: that one slices the moments at wrong offsets as soon as a buffer has several
buckets (Megatron-LM#5077; overlapped communication, or tied embeddings under pipeline parallelism), fails on the `step`
of torch's AdamW, and gives all parameters one and the same step tensor, which then counts each parameter's update.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siri_megatron.learner.mcore import DistributedOptimizer, parallel_state
from siri_megatron.learner.runtime import eager_imports

with eager_imports():
    from megatron.core.dist_checkpointing.optimizer import (
        get_param_id_to_sharded_param_map,
        make_sharded_optimizer_tensor,
    )

MAIN = "fp32_param"
OPTIMIZER_PREFIX = "optimizer.state"


def metadata() -> dict[str, Any]:
    """What megatron's `sharded_state_dict` methods want to be told."""
    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def sharded_optimizer(optimizer: Any, model: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """The state as megatron's sharded tensors. Collective.

    Args:
        model: the model's sharded state, which says how each parameter is split.
    """
    part = _single(optimizer)
    if isinstance(part, DistributedOptimizer):
        whole = _empty(part) if is_loading else _gathered(part)
        return {"step": _step(part), **({"state": _split(part, whole, model)} if whole else {})}
    state = part.sharded_state_dict(model, is_loading=is_loading, metadata=metadata())
    adamw = state.get("optimizer", state)  # bfloat16 keeps AdamW's state beside the main weights
    moments = {index: entry for index, entry in adamw["state"].items() if index != "common_step"}
    main = {"main": state["fp32_from_fp16_params"]} if "fp32_from_fp16_params" in state else {}
    return {"step": _step(part), "state": moments, **main}


def load_optimizer(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Put a loaded state into the live optimizer. The model's weights must have been loaded before."""
    part = _single(optimizer)
    if isinstance(part, DistributedOptimizer):
        _load_distributed(part, loaded["state"])
    else:
        _load_plain(part, loaded)
    _set_step(part, loaded["step"])


def is_gathered(optimizer: Any) -> bool:
    """The tensors of `sharded_optimizer` are copies, not the live state."""
    return isinstance(_single(optimizer), DistributedOptimizer)


def _single(optimizer: Any) -> Any:
    (part,) = getattr(optimizer, "chained_optimizers", [optimizer])  # several only with mixtures of experts
    return part


def _load_plain(part: Any, loaded: dict[str, Any]) -> None:
    step = {"step": torch.tensor(loaded["step"])} if isinstance(part.optimizer, torch.optim.AdamW) else {}
    adamw = {"state": {index: entry | step for index, entry in loaded["state"].items()},
             "param_groups": part.optimizer.state_dict()["param_groups"]}
    part.load_state_dict({"optimizer": adamw, "fp32_from_fp16_params": loaded["main"]} if "main" in loaded else adamw)


def _load_distributed(part: Any, state: dict[int, dict[str, Tensor]]) -> None:
    """Each rank takes its own piece of each parameter."""
    indices = {parameter: index for index, parameter in enumerate(_parameters(part))}
    for _, _, shards in _buckets(part):
        for parameter, ranges in shards.items():
            piece = slice(ranges["param"].start, ranges["param"].end)
            for name, tensor in _own(part, parameter).items():
                tensor.copy_(state[indices[parameter]][name].flatten()[piece])


def _parameters(part: Any) -> list[Any]:
    """Model parameters of this rank, in one order on all of its data-parallel ranks."""
    return [parameter for buffer in part.buffers for parameter in buffer.param_index_map]


def _buckets(part: Any) -> Iterator[tuple[Any, Any, dict[Any, Any]]]:
    """(buffer, bucket, parameter -> where this rank's shard of it lies) of every bucket."""
    for buffer, by_dtype in zip(part.buffers, part.gbuf_ranges, strict=True):
        (ranges,) = by_dtype.values()
        for bucket, mapped in zip(buffer.buckets, ranges, strict=True):
            yield buffer, bucket, mapped["param_map"]


def _names(part: Any) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", MAIN) if part.config.bf16 else ("exp_avg", "exp_avg_sq")


def _own(part: Any, parameter: Any) -> dict[str, Tensor]:
    """This rank's shard of a parameter's state, flat."""
    group, place = part.model_param_group_index_map[parameter]
    main = part.optimizer.param_groups[group]["params"][place]
    state = {MAIN: main.detach(), **part.optimizer.state[main]}
    return {name: state[name] for name in _names(part)}


def _empty(part: Any) -> list[dict[str, Tensor]]:
    """What to load into, for each parameter."""
    return [{name: torch.empty(parameter.shape, dtype=torch.float32) for name in _names(part)}
            for parameter in _parameters(part)]


def _gathered(part: Any) -> list[dict[str, Tensor]]:
    """The whole state of each parameter, in its shape, on the first data-parallel rank; nothing on the others."""
    whole: dict[Any, dict[str, Tensor]] = {parameter: {} for parameter in _parameters(part)}
    first = part.data_parallel_group.rank() == 0
    for buffer, bucket, shards in _buckets(part):
        for name in _names(part):
            flat = _gather_bucket(part, bucket, shards, name)
            for parameter in bucket.params_list if flat is not None else ():
                start, end, _ = buffer.param_index_map[parameter]
                piece = flat[start - bucket.offset:end - bucket.offset]
                whole[parameter][name] = piece.view(parameter.shape).cpu()
    return list(whole.values()) if first else []


def _gather_bucket(part: Any, bucket: Any, shards: dict[Any, Any], name: str) -> Any:
    """One kind of state of a bucket, flat, padding included, on the first data-parallel rank; None on the others."""
    group = part.data_parallel_group
    own = torch.zeros(bucket.grad_data.numel() // group.size(), device=bucket.grad_data.device)
    for parameter, ranges in shards.items():
        own[ranges["gbuf_local"].start:ranges["gbuf_local"].end] = _own(part, parameter)[name]
    pieces = [torch.empty_like(own) for _ in range(group.size())] if group.rank() == 0 else None
    dist.gather(own, pieces, group=group, group_dst=0)
    return None if pieces is None else torch.cat(pieces)


def _split(part: Any, whole: list[dict[str, Tensor]], model: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Each parameter's state as sharded tensors that lie like the parameter."""
    like = get_param_id_to_sharded_param_map(model, _parameters(part))
    return {index: {name: make_sharded_optimizer_tensor(like[index], tensor, prefix=f"{OPTIMIZER_PREFIX}.{name}")
                    for name, tensor in entry.items()} for index, entry in enumerate(whole)}


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
