"""Batches of the supervised warm start, as a pure function of (config, step). No torch, no state.

Invariants:
    pure: `sft_batch(config, step)` depends on the config's seed, data and stages and on the step, nothing else; so a
        resumed run and every data-parallel rank see the same batch, and rank r of d may simply take sequences r::d
    normalised: the weights of a batch sum to one, so the loss is the plain sum of weight x negative log-likelihood
    held-out problems never occur
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from siri_megatron.data.character_tokenizer import BOS, EOS
from siri_megatron.sft_config import SftConfig, StageConfig


@dataclass(frozen=True)
class SftSequence:
    """A prompt (with BOS), the teacher's response (with EOS), and a weight for each response token."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    token_weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class SftBatch:
    """What one optimizer step trains on, and at which learning rate."""

    step: int
    stage: int
    lr: float
    sequences: tuple[SftSequence, ...]


def sft_batch(config: SftConfig, step: int) -> SftBatch:
    """The batch of a step, 0 <= step < config.steps."""
    stage_index, within = stage_of(config, step)
    stage = config.stages[stage_index]
    sequences = _sequences(config, stage, random.Random(f"sft/{config.seed}/{step}"))
    lr = stage_lr(stage, within, config.optimizer.lr, config.optimizer.warmup_steps)
    return SftBatch(step, stage_index, lr, _normalised(sequences))


def stage_of(config: SftConfig, step: int) -> tuple[int, int]:
    """(index of the stage, step within it)."""
    for index, stage in enumerate(config.stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise IndexError(f"step is {step} past the last of {config.steps} steps")


def stage_lr(stage: StageConfig, within: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine from the stage's peak to `final_lr_scale` of it at the end of the stage."""
    warmup = min(1.0, (within + 1) / (warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * within / stage.steps))
    return peak * stage.lr_scale * warmup * (stage.final_lr_scale + (1 - stage.final_lr_scale) * cosine)


def _sequences(config: SftConfig, stage: StageConfig, rng: random.Random) -> list[SftSequence]:
    sequences: list[SftSequence] = []
    tokens = 0
    while tokens < stage.tokens_per_step:
        sequences.append(_sequence(config, stage, rng))
        tokens += len(sequences[-1])
    return sequences


def _sequence(config: SftConfig, stage: StageConfig, rng: random.Random) -> SftSequence:
    family = config.family
    content = family.draw("train", rng.randint(config.data.min_terms, config.data.max_terms), rng)
    text = family.respond(content, stage.teacher, rng)
    while len(text) >= config.max_response_tokens:
        text = family.respond(content, stage.teacher, rng)
    weights = [stage.content_weight if character in family.weighted else 1.0 for character in text + EOS]
    encode = family.tokenizer.encode
    return SftSequence(tuple(encode(BOS + family.question(content))), tuple(encode(text + EOS)), tuple(weights))


def _normalised(sequences: list[SftSequence]) -> tuple[SftSequence, ...]:
    total = sum(sum(sequence.token_weights) for sequence in sequences)
    return tuple(
        SftSequence(sequence.prompt_ids, sequence.response_ids, tuple(w / total for w in sequence.token_weights))
        for sequence in sequences
    )
