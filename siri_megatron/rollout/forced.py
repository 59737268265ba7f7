"""Forced answers: a response that has not ended `reserve` tokens before its cap is told to answer now. Pure.

    prompt ─► sampled, at most cap - reserve tokens ─► ended: as it is
                        └─► not ended: + forced text ─► goes on, sampled, to the end or the cap

Source: forced interruptions of ScaleRL (arXiv 2510.13786), which closes the thinking and lets the model answer instead
of punishing length. The forced tokens are not the policy's: they have no weight in the loss, no place in its
denominators, and no log-prob (0 stands in the row). What is sampled after them is the policy's, and its log-probs are
those given the forced text.

A smaller budget B says nothing new here: clip(y, B) of a forced response is not what a forced answer at B would be, so
J(B) below the cap is that of answers cut off. Evaluation forces nothing.

Invariants:
- within_the_cap: a joined response has at most cap tokens.
- ended_ones_are_untouched: a response that ended by itself is as the engine gave it.
- forced_tokens_are_marked: `forced` covers the forced text and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from siri_megatron.config import RewardConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.errors import ConfigError
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.request import Request


@dataclass(frozen=True)
class ForcedAnswer:
    """How a response is ended."""

    ids: tuple[int, ...]
    """The forced text."""
    reserve: int
    """Tokens of the cap for it and the answer."""

    @classmethod
    def of(cls, config: RewardConfig, codec: TextCodec) -> ForcedAnswer | None:
        """As `reward.forced_text` and `forced_reserve` say; None if no phase forces answers.

        Raises:
            ConfigError: the text is empty, holds a stop token, or leaves no token of the reserve for the answer.
        """
        if config.forced_text is None or config.forced_reserve is None:
            return None
        ids = tuple(codec.encode(config.forced_text))
        if not ids or set(ids) & set(codec.stop_ids):
            raise ConfigError(f"reward.forced_text={config.forced_text!r} has the tokens {list(ids)}, the stop tokens "
                              f"are {list(codec.stop_ids)}", rule="an answer follows the forced text",
                              fix="give a text without a stop token, for example '</think>'")
        if len(ids) >= config.forced_reserve:
            raise ConfigError(f"reward.forced_text={config.forced_text!r} has {len(ids)} tokens, reward.forced_reserve="
                              f"{config.forced_reserve}", rule="forced_reserve holds the forced text and an answer",
                              fix=f"set reward.forced_reserve={len(ids) + 16} or more, or a shorter text")
        return cls(ids, config.forced_reserve)

    def before(self, request: Request) -> Request:
        """The request up to where a response is interrupted. request.max_tokens is the cap."""
        return replace(request, max_tokens=request.max_tokens - self.reserve)

    def after(self, request: Request, thought: Sample, seed: int | None) -> Request:
        """The request for what follows the forced text of an interrupted response."""
        return replace(request, prompt_ids=(*request.prompt_ids, *thought.token_ids, *self.ids), n=1,
                       max_tokens=self.reserve - len(self.ids), seed=seed)

    def joined(self, thought: Sample, answer: Sample) -> Sample:
        """An interrupted response, the forced text and what followed it, as one sample."""
        start = len(thought.token_ids)
        end = start + len(self.ids)
        spans = [span | {"start": span["start"] + end, "end": span["end"] + end} for span in answer.spans]
        return Sample([*thought.token_ids, *self.ids, *answer.token_ids],
                      [*thought.logprobs, *[0.0] * len(self.ids), *answer.logprobs], answer.finish_reason,
                      [*thought.spans, *spans], forced=(start, end))
