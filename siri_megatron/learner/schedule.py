"""Run micro-batches through megatron-core's pipeline schedule: one call per optimizer step or forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from siri_megatron.learner.batch import Batch
from siri_megatron.learner.logprobs import token_logprobs
from siri_megatron.learner.mcore import get_forward_backward_func, parallel_state
from siri_megatron.learner.pipeline import communication, streams

Objective = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Any]]
"""(batch, log-probs [b, s], entropy [b, s]) -> (loss [], what to keep of this micro-batch)"""


def run_schedule(chunks: Sequence[Any], batches: Iterable[Batch], count: int, objective: Objective, *,
                 temperature: float, vocab: int, forward_only: bool = False) -> list[Any]:
    """Forward (and backward) over `count` micro-batches; every rank of the pipeline calls it with the same batches.

    With several chunks (a virtual pipeline) the count is a multiple of the pipeline's stages.

    Gradients are left reduced in the model's buffers. Returns what the objective kept of each micro-batch, on ranks
    of the last pipeline stage; an empty list elsewhere.
    """
    group = parallel_state.get_tensor_model_parallel_group()

    def forward_step(stream: Iterator[Batch], chunk: Any) -> tuple[Tensor, Callable[[Tensor], tuple[Any, ...]]]:
        batch = next(stream)
        output = chunk(batch.ids, None, None, packed_seq_params=batch.packing)

        def loss(logits: Tensor) -> tuple[Any, ...]:
            logprobs, entropy = token_logprobs(logits, batch.labels, temperature=temperature, vocab=vocab, group=group)
            value, kept = objective(batch, logprobs, entropy)
            return value, batch.mask.sum().int(), {"kept": kept}

        return output, loss

    kept = get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=streams(batches, len(chunks)),
        model=list(chunks) if len(chunks) > 1 else chunks[0], num_microbatches=count,
        seq_length=1, micro_batch_size=1,  # not looked at: shapes are exchanged (variable_seq_lengths)
        forward_only=forward_only, **communication(chunks[0].config))
    return [item["kept"] for item in kept]
