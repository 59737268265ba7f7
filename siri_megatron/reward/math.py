"""Mathematical equality by math-verify, in worker processes that are killed at a deadline.

sympy can be made to compute for ever, to recurse without end or to eat all memory, and a model's text is hostile
input; so every judgement runs in a spawned process with a memory limit, under a deadline enforced from outside
(Pebble). A judgement that was killed is `failed`, never `wrong`. Signal alarms, which math-verify uses by default,
are switched off: in a thread they make every reward zero (verl PR #5635), and they do not interrupt C code.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import resource
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING

from pebble import ProcessExpired, ProcessPool

from siri_megatron.errors import DataError
from siri_megatron.reward.scope import MAX_CHARACTERS, Scope, scoped_text

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import Prompt
    from siri_megatron.reward.verifier import Outcome

MEMORY_BYTES = 2 << 30
"""Address space of a worker: a tower of powers ends in MemoryError instead of the machine's end."""
TASKS_PER_WORKER = 2000
"""A worker is replaced after so many judgements: sympy's caches grow without bound."""
JOIN_S = 10.0


class MathVerifier:
    """Judges in `workers` processes; waits for each judgement at most `timeout_s`.

    Args:
        scope: where the answer may stand.
        timeout_s: seconds from the start of a judgement in its worker until the worker is killed.
    """

    def __init__(self, codec: TextCodec, *, scope: Scope, workers: int, timeout_s: float) -> None:
        self._codec, self._scope, self._timeout_s = codec, scope, timeout_s
        context = multiprocessing.get_context("spawn")  # a fork would copy locks held by the event loop's threads
        self._pool = ProcessPool(max_workers=workers, max_tasks=TASKS_PER_WORKER, initializer=prepare_worker,
                                 context=context)

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        return scoped_text(self._codec.decode(response_ids), self._scope)

    async def judge(self, prompt: Prompt, answer_text: str) -> Outcome:
        """right, wrong, or failed: killed at the deadline, out of memory, or an error inside of the library."""
        future = self._pool.schedule(compare, args=(bounded_reference(prompt), answer_text), timeout=self._timeout_s)
        try:
            return await asyncio.wrap_future(future)
        except (FutureTimeout, ProcessExpired):
            return "failed"

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._pool.stop()
        self._pool.join(JOIN_S)


def bounded_reference(prompt: Prompt) -> str:
    """The reference answer.

    Raises:
        DataError: it is longer than any answer that could be judged.
    """
    if len(prompt.answer) > MAX_CHARACTERS:
        raise DataError(f"the answer of prompt {prompt.id} has {len(prompt.answer)} characters",
                        rule=f"an answer has at most {MAX_CHARACTERS}", fix="shorten it or leave the prompt out")
    return prompt.answer


def prepare_worker() -> None:
    """Before the first judgement of a worker: limit its memory, and import sympy outside of any deadline."""
    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.WARNING)  # math-verify warns in every process that its alarms are off


def compare(reference: str, answer: str) -> Outcome:
    """Runs in a worker. A reference that cannot be parsed gives no verdict; an answer that cannot be is wrong."""
    from math_verify import parse, verify

    try:
        gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=None, raise_on_error=True)
        if not gold:
            return "failed"
        found = parse(answer, parsing_timeout=None, raise_on_error=True)
        right = bool(found) and verify(gold, found, timeout_seconds=None, raise_on_error=True)
    except Exception:  # noqa: BLE001  sympy raises anything on hostile input; whatever it is, there is no verdict
        return "failed"
    return "right" if right else "wrong"
