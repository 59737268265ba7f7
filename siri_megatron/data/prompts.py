"""The prompts of a run: read or generated, tokenised, checked for length. Deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from siri_megatron.config import DataConfig
from siri_megatron.data.jsonl import Row, read_rows
from siri_megatron.errors import ConfigError, DataError

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec


@dataclass(frozen=True)
class Prompt:
    """One question, ready to be sent."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    answer: str
    tier: str = ""
    """Difficulty class, e.g. `k=5`; evaluation reports each apart."""


def train_prompts(config: DataConfig, codec: TextCodec) -> Sequence[Prompt]:
    """Training prompts.

    Raises:
        ConfigError: a JSONL path is not given.
        DataError: a file is malformed, or prompts are longer than `max_prompt_tokens`.
    """
    return _tokenised(_rows(config, "train", config.train_problems), config, codec)


def eval_prompts(config: DataConfig, codec: TextCodec, n: int) -> Sequence[Prompt]:
    """The first n held-out prompts (all of them if a file has fewer). Raises as `train_prompts`."""
    return _tokenised(_rows(config, "eval", n)[:n], config, codec)


def _rows(config: DataConfig, split: Literal["train", "eval"], n: int) -> list[Row]:
    if config.source == "jsonl":
        return read_rows(_path(config, split))
    from siri_megatron.data.digit_sum import problems

    made = problems(split, n, config.min_terms, config.max_terms)
    return [Row(problem.id, problem.prompt, problem.answer, problem.tier) for problem in made]


def _path(config: DataConfig, split: Literal["train", "eval"]) -> Path:
    path = config.train_path if split == "train" else config.eval_path
    if path is None:
        raise ConfigError(f"data.source=jsonl, but data.{split}_path is not set", rule="JSONL prompts need both paths",
                          fix=f"data.{split}_path=prompts.jsonl")
    return path


def _tokenised(rows: list[Row], config: DataConfig, codec: TextCodec) -> list[Prompt]:
    ids = codec.encode_prompts([row.prompt for row in rows], template=config.template, chat=config.chat)
    prompts = [Prompt(row.id, row.prompt, tuple(tokens), row.answer, row.tier)
               for row, tokens in zip(rows, ids, strict=True)]
    _check_lengths(prompts, config.max_prompt_tokens)
    _check_vocabulary(prompts, codec.vocab_size)
    return prompts


def _check_lengths(prompts: list[Prompt], limit: int) -> None:
    long = [prompt for prompt in prompts if len(prompt.token_ids) > limit]
    if long:
        worst = max(long, key=lambda prompt: len(prompt.token_ids))
        raise DataError(f"{len(long)} of {len(prompts)} prompts have more than {limit} tokens; the longest, "
                        f"{worst.id}, has {len(worst.token_ids)}", rule="prompt tokens <= data.max_prompt_tokens",
                        fix=f"raise data.max_prompt_tokens to {len(worst.token_ids)}, or leave these prompts out")
    empty = [prompt.id for prompt in prompts if not prompt.token_ids]
    if empty:
        raise DataError(f"prompts {empty[:5]} have no tokens", rule="a prompt has at least one token",
                        fix="leave these prompts out, or check the tokenizer")


def _check_vocabulary(prompts: list[Prompt], vocab_size: int) -> None:
    bad = [prompt for prompt in prompts if max(prompt.token_ids) >= vocab_size]
    if bad:
        raise DataError(f"prompt {bad[0].id} has token {max(bad[0].token_ids)}, the model {vocab_size} embeddings",
                        rule="token id < vocab_size", fix="take the tokenizer that belongs to the model")
