"""Logits of the two real programs on real prompts: transformers on the Hugging Face side, megatron-core on the other.

megatron's own loader (`dist_checkpointing.load`) fills a GPTModel that is built from the checkpoint's own config.json,
so whatever conversion got wrong in names, order, padding or config shows. Both compute in float32 on the CPU; the whole
model is in memory twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siri_megatron.checkpoint.megatron_state import stored_weights
from siri_megatron.config import LearnerConfig, ModelConfig
from siri_megatron.convert.source import Weights
from siri_megatron.convert.verify import Different
from siri_megatron.learner.groups import start_groups, stop_groups
from siri_megatron.learner.mcore import GPTModel
from siri_megatron.learner.model import build_model, transformer_config
from siri_megatron.learner.runtime import eager_imports, megatron_runtime

with eager_imports():
    from megatron.core import dist_checkpointing

TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit: float32 rounding stays far below, a wrong config far above."""


@dataclass(frozen=True)
class LogitDifference:
    """How far apart the logits are, over all tokens of all prompts."""

    largest: float
    scale: float
    """The largest logit."""
    same_argmax: float
    """Share of the positions where both predict the same token."""
    prompts: int

    @property
    def good(self) -> bool:
        return self.largest <= TOLERANCE * max(1.0, self.scale)


def compare_logits(hf: Weights, megatron: Weights, rows: Sequence[Sequence[int]], *,
                   as_dtype: torch.dtype | None = None) -> LogitDifference:
    """Run both models.

    Args:
        rows: token ids of the prompts.
        as_dtype: the type that the conversion changed to; the weights of both sides are rounded to it.

    Raises:
        Different: the logits differ by more than rounding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both libraries speak of their own future
        theirs = hf_logits(hf, rows, as_dtype)
        found = difference(megatron_logits(megatron, rows, as_dtype), theirs)
    if not found.good:
        raise Different(f"logits of {megatron.path} and {hf.path} differ by {found.largest:.2e} (largest logit "
                        f"{found.scale:.1f}) on {found.prompts} prompts",
                        rule=f"at most {TOLERANCE} of the largest logit, in float32",
                        fix="compare the two configs; convert again")
    return found


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> LogitDifference:
    """Compare logits, each [tokens, vocabulary]."""
    pairs = list(zip(ours, theirs, strict=True))
    same = torch.cat([mine.argmax(-1) == other.argmax(-1) for mine, other in pairs])
    return LogitDifference(max(float((mine - other).abs().max()) for mine, other in pairs),
                           max(float(other.abs().max()) for _, other in pairs), float(same.float().mean()), len(pairs))


@torch.no_grad()
def megatron_logits(megatron: Weights, rows: Sequence[Sequence[int]], as_dtype: torch.dtype | None) -> list[Tensor]:
    """Logits [tokens, vocabulary] of a GPTModel on one rank, filled by megatron's own loader."""
    with megatron_runtime():
        start_groups(LearnerConfig(), None, seed=0)
        try:
            layout, asked = LearnerConfig(), ModelConfig(path=megatron.companions, dtype="float32", spec="local")
            config = transformer_config(megatron.arch, layout, asked)
            model = build_model(megatron.arch, config, "local", context=max(map(len, rows)))[0]
            load_state(model, megatron.path)
            _round(model, as_dtype)
            return [_gpt_logits(model.eval(), row)[:, :megatron.arch.vocab] for row in rows]
        finally:
            stop_groups()


@torch.no_grad()
def hf_logits(hf: Weights, rows: Sequence[Sequence[int]], as_dtype: torch.dtype | None) -> list[Tensor]:
    """Logits [tokens, vocabulary] of transformers' model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(hf.path, dtype=torch.float32).eval()
    _round(model, as_dtype)
    return [model(torch.tensor([row])).logits[0].float() for row in rows]


def load_state(model: GPTModel, state: Path) -> None:
    """Fill the rank's chunk from a distributed checkpoint, a run's or a converted one. Collective.

    Only the weights are asked for: checkpoints of runs hold no `_extra_state`.
    """
    loaded = dist_checkpointing.load({"model": stored_weights(model)}, str(state))
    model.load_state_dict(loaded["model"], strict=False)  # reading has seen to it that no weight is missing


def _gpt_logits(model: GPTModel, row: Sequence[int]) -> Tensor:
    ids = torch.tensor([row], device=next(model.parameters()).device)
    return model(ids, None, None)[0].float().cpu()


def _round(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    for parameter in model.parameters() if dtype else ():
        parameter.copy_(parameter.to(dtype))
