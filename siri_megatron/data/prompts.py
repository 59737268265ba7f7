"""The prompts of a run: read or generated, tokenised, checked for length. Deterministic, given data and tokenizer.

Invariants:
    counted: every question is a prompt of the set, or counted in `dropped`; none is lost silently.
    fingerprint: differs where an id, a token or an answer differs, or their order; the place they came from is no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from siri_megatron.config import DataConfig, DatasetConfig, RunConfig, SuiteConfig
from siri_megatron.config.evaluation import OWN
from siri_megatron.data.codec import Unencodable
from siri_megatron.data.families import FAMILIES
from siri_megatron.data.rows import Row, read_rows
from siri_megatron.data.tables import read_path
from siri_megatron.errors import ConfigError, DataError

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Prompt:
    """One question, ready to be sent."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    answer: str
    tier: str = ""
    """Difficulty class, e.g. `k=5`; evaluation reports each apart."""


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts in their order, and what was left out of them.

    Attributes:
        dropped: questions left out for their length.
        longest: (id, tokens) of the longest of those; of all prompts if there are none.
    """

    prompts: tuple[Prompt, ...]
    dropped: int
    longest: tuple[str, int]

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        return self.prompts[index]

    @property
    def fingerprint(self) -> str:
        """Hash of ids, tokens and answers."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            text = f"{prompt.id}\0{prompt.answer}\0{len(prompt.token_ids)}\0".encode(errors="surrogatepass")
            digest.update(text + np.array(prompt.token_ids, np.int32).tobytes())
        return digest.hexdigest()[:16]

    def sentence(self) -> str:
        """For people: how many there are, and what was dropped."""
        name, tokens = self.longest
        if self.dropped:
            return (f"{len(self)} prompts; {self.dropped} of {len(self) + self.dropped} dropped as too long, the "
                    f"longest, {name}, has {tokens} tokens")
        return f"{len(self)} prompts, the longest has {tokens} tokens"


def train_prompts(config: DataConfig, codec: TextCodec, *, offline: bool = False) -> PromptSet:
    """Training prompts.

    Args:
        offline: hub data sets come from the cache: somebody has fetched them before.

    Raises:
        ConfigError: no data set is named.
        DataError: rows are malformed, or prompts are longer than `max_prompt_tokens`.
    """
    return _tokenised(_rows(config, "train", config.train_problems, offline), config, codec)


def eval_prompts(config: DataConfig, codec: TextCodec, n: int, *, offline: bool = False) -> PromptSet:
    """The first n held-out prompts (all of them if there are fewer). Raises as `train_prompts`."""
    return _tokenised(_rows(config, "eval", n, offline)[:n], config, codec)


def suite_prompts(config: RunConfig, codec: TextCodec, *, offline: bool = False) -> dict[str, PromptSet]:
    """The questions of every suite, the run's own held-out ones first. Raises as `train_prompts`."""
    own = config.evaluation.problems
    sets = {OWN: eval_prompts(config.data, codec, own, offline=offline)} if own else {}
    return sets | {suite.name: _suite(suite, config.data, codec, offline) for suite in config.evaluation.suites}


def _suite(suite: SuiteConfig, config: DataConfig, codec: TextCodec, offline: bool) -> PromptSet:
    return _tokenised(read_dataset(suite.data, config.hub_timeout_s, offline)[:suite.problems], config, codec)


def _rows(config: DataConfig, split: Split, n: int, offline: bool) -> list[Row]:
    if config.source == "dataset":
        return read_dataset(_dataset(config, split), config.hub_timeout_s, offline)
    if config.source == "reasoning_gym":
        from siri_megatron.data import reasoning

        return reasoning.problems(config.tasks, split, n)
    made = FAMILIES[config.source].problems(split, n, config.min_terms, config.max_terms)
    return [Row(problem.id, problem.prompt, problem.answer, problem.tier) for problem in made]


def read_dataset(dataset: DatasetConfig, timeout_s: float, offline: bool = False) -> list[Row]:
    """Every question of a file, a directory or a hub data set, in order.

    Raises:
        DataError: it is not there, or rows are malformed (named by file and line).
    """
    table = dataset.resolved()
    if not table.on_hub:
        return read_rows(read_path(Path(str(table.path)), table.split), table, str(table.path))
    from siri_megatron.data.hub import read_hub

    return read_rows(read_hub(table, timeout_s=timeout_s, offline=offline), table, str(table.path))


def _dataset(config: DataConfig, split: Split) -> DatasetConfig:
    dataset = config.train if split == "train" else config.eval
    if dataset is None:
        raise ConfigError(f"data.source=dataset, but data.{split} is not set",
                          rule="training prompts come from data.train, held-out ones from data.eval",
                          fix=f"data.{split}=prompts.jsonl" + (", or evaluation.problems=0" if split == "eval" else ""))
    return dataset


def _tokenised(rows: list[Row], config: DataConfig, codec: TextCodec) -> PromptSet:
    try:
        ids = codec.encode_prompts([row.turns or row.prompt for row in rows], template=config.template,
                                   chat=config.chat)
    except Unencodable as problem:
        row = rows[problem.index]
        raise DataError(f"prompt {row.id} cannot be encoded: {problem}; it begins {row.prompt[:60]!r}",
                        rule="the model's tokenizer knows every character of a prompt, or has a token for unknown ones",
                        fix="mend this row or leave it out, or take another model") from None
    prompts = tuple(Prompt(row.id, row.prompt, tuple(tokens), row.answer, row.tier)
                    for row, tokens in zip(rows, ids, strict=True))
    _check_ids(prompts, codec.vocab_size)
    kept = tuple(prompt for prompt in prompts if len(prompt.token_ids) <= config.max_prompt_tokens)
    worst = max(prompts, key=lambda prompt: len(prompt.token_ids))
    longest = worst.id, len(worst.token_ids)
    if len(kept) < len(prompts) and (config.overlong_prompts == "refuse" or not kept):
        raise _overlong(len(prompts) - len(kept), len(prompts), longest, config.max_prompt_tokens)
    return PromptSet(kept, len(prompts) - len(kept), longest)


def _overlong(long: int, total: int, longest: tuple[str, int], limit: int) -> DataError:
    return DataError(f"{long} of {total} prompts have more than {limit} tokens; the longest, {longest[0]}, has "
                     f"{longest[1]}", rule="prompt tokens <= data.max_prompt_tokens",
                     fix=f"raise data.max_prompt_tokens to {longest[1]}, or leave these prompts out "
                         "(data.overlong_prompts=drop)")


def _check_ids(prompts: Sequence[Prompt], vocab_size: int) -> None:
    empty = [prompt.id for prompt in prompts if not prompt.token_ids]
    if empty:
        raise DataError(f"prompts {empty[:5]} have no tokens", rule="a prompt has at least one token",
                        fix="leave these prompts out, or check the tokenizer")
    bad = [prompt for prompt in prompts if max(prompt.token_ids) >= vocab_size]
    if bad:
        raise DataError(f"prompt {bad[0].id} has token {max(bad[0].token_ids)}, the model {vocab_size} embeddings",
                        rule="token id < vocab_size", fix="take the tokenizer that belongs to the model")
