"""The length rule DOT at work on a finished group: outliers are cut, and judged again (`reward.dot` says which).

Invariants of a cut sample:
- prefix: its tokens and log-probs are the first ones of what was sampled, and its spans cover just them.
- judged_again: outcome and every budget's reward are those of the cut text.
- ended_within_its_cap: `truncated` stays as sampled. The cap did not cut it, so what is done about truncated samples
  (overlong handling, the closed loop's limits) does not concern it; its finish reason is `cut`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from siri_megatron.config import DotConfig
from siri_megatron.data.prompts import Prompt
from siri_megatron.ledger.schema import CUT
from siri_megatron.reward.dot import outliers
from siri_megatron.reward.verifier import Scored, Verifier, score
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.engine_client import gather_or_cancel


async def cut_outliers(verifier: Verifier, prompt: Prompt, samples: Sequence[Sample], scored: Sequence[Scored],
                       config: DotConfig, *, cap: int, grid: Sequence[int],
                       stop_ids: Sequence[int]) -> tuple[list[Sample], list[Scored]]:
    """The samples of a group, outliers cut, and their scores. Arguments as of `reward.verifier.score`."""
    limit, chosen = outliers([len(sample.token_ids) for sample in samples], [one.reward for one in scored], config)
    cut = {number: cut_sample(samples[number], limit) for number in chosen}
    again = await gather_or_cancel([score(verifier, prompt, sample.token_ids, cap, grid, stop_ids)
                                    for sample in cut.values()])
    judged = dict(zip(cut, again, strict=True))
    return ([cut.get(number, sample) for number, sample in enumerate(samples)],
            [replace(judged[number], truncated=before.truncated) if number in judged else before
             for number, before in enumerate(scored)])


def cut_sample(sample: Sample, length: int) -> Sample:
    """The first `length` tokens of a sample, 1 <= length."""
    spans = [{**span, "end": min(span["end"], length)} for span in sample.spans if span["start"] < length]
    start, end = (min(place, length) for place in sample.forced)
    return Sample(sample.token_ids[:length], sample.logprobs[:length], CUT, spans, (start, end))
