"""The generated family's own check: a response ends in `A<answer>` and a stop token. Inline, no process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import Prompt

ANSWER_MARK = "A"


class ExactVerifier:
    """Compares what stands between the last `A` and the stop token with the reference, character by character."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        """None without a stop token at the end: an unfinished response has not answered."""
        if not response_ids or response_ids[-1] not in self._codec.stop_ids:
            return None
        _, mark, answer = self._codec.decode(response_ids).rpartition(ANSWER_MARK)
        return answer if mark else None

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        return float(answer_text == prompt.answer)

    async def close(self) -> None:
        """Nothing to release."""
