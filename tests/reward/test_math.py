"""math-verify in killable workers: right, wrong, failed; hostile strings end at the deadline and leave no process."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Sequence

import pytest

from siri_megatron.data.prompts import Prompt
from siri_megatron.errors import DataError
from siri_megatron.reward.math import MathVerifier, bounded_reference, compare
from siri_megatron.reward.scope import MAX_CHARACTERS
from siri_megatron.reward.verifier import Outcome, score, verify

TIMEOUT_S = 2.0

HOSTILE = {
    "tower of powers": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "python tower": "9**9**9**9**9",
    "tower of factorials": r"\boxed{((((100!)!)!)!)}",
    "nested parentheses": "\\boxed{" + "(" * 1500 + "1" + ")" * 1500 + "}",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 200 + "2" + "}" * 201,
    "a megabyte of sums": "1+" * 500_000 + "1",
    "a megabyte of open boxes": "\\boxed{" * 150_000,
    "long sum": r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n^3}}",
    "huge product": r"\boxed{\prod_{n=1}^{1000000} (x+n)}",
    "huge binomial": r"\boxed{\binom{10^{9}}{5 \cdot 10^{8}}}",
    "digits": "\\boxed{" + "9" * 4000 + "}",
    "control characters": "\\boxed{\x00\x1b[2J\ufffd}",
    "code": "\\boxed{__import__('os').abort()}",
}
KILLED = ("tower of powers", "long sum", "huge product")


class Characters:
    """A codec whose tokens are characters."""

    stop_ids = (0,)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(map(chr, ids))


def prompt(answer: str) -> Prompt:
    return Prompt("p", "?", (1,), answer)


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize(("reference", "answer", "expected"), [
    ("7", r"\boxed{7}", "right"), ("7", r"\boxed{\frac{14}{2}}", "right"), ("7", "8", "wrong"),
    ("7", "no idea", "wrong"), (r"\frac{1}{2}", "0.5", "right"), ("(1,2)", r"\boxed{(1, 2)}", "right"),
    ("x+1", r"\boxed{1+x}", "right"),
    ("", r"\boxed{7}", "failed"),
])
def test_compare(reference: str, answer: str, expected: Outcome) -> None:
    assert compare(reference, answer) == expected


def test_hostile_strings_end_at_the_deadline_and_leave_no_worker() -> None:
    async def judge_all() -> dict[str, Outcome]:
        verifier = MathVerifier(Characters(), scope="all", workers=2, timeout_s=TIMEOUT_S)  # type: ignore[arg-type]
        before = await verify(verifier, prompt("7"), ids(r"\boxed{7}"))
        tasks = {name: verify(verifier, prompt("7"), ids(text)) for name, text in HOSTILE.items()}
        async with asyncio.timeout(30 + 4 * TIMEOUT_S * len(HOSTILE)):
            outcomes = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        after = await verify(verifier, prompt("7"), ids(r"\boxed{7}"))
        await verifier.close()
        return {**outcomes, "before": before, "after": after}

    outcomes = asyncio.run(judge_all())
    assert (outcomes.pop("before"), outcomes.pop("after")) == ("right", "right")
    assert set(outcomes.values()) <= {"wrong", "failed"}
    assert {outcomes[name] for name in KILLED} == {"failed"}
    assert multiprocessing.active_children() == []


def modules_of_a_worker() -> list[str]:
    return sorted(sys.modules)


def test_workers_are_lean() -> None:
    verifier = MathVerifier(Characters(), scope="all", workers=1, timeout_s=20.0)  # type: ignore[arg-type]
    modules = verifier._pool.schedule(modules_of_a_worker).result(timeout=30)
    asyncio.run(verifier.close())
    assert "math_verify" in modules
    assert not {"torch", "vllm", "transformers"} & set(modules)


def test_boxed_scope_is_judged_at_every_budget() -> None:
    async def run() -> dict[int, float]:
        verifier = MathVerifier(Characters(), scope="boxed", workers=1, timeout_s=20.0)  # type: ignore[arg-type]
        text = r"\boxed{6} wait \boxed{7} or \boxed{8}"
        scored = await score(verifier, prompt("7"), ids(text), 99, (5, 9, 24, 99), (0,))
        await verifier.close()
        return scored.budgets

    assert asyncio.run(run()) == {5: 0.0, 9: 0.0, 24: 1.0, 99: 0.0}


def test_reference_out_of_bounds_is_refused() -> None:
    with pytest.raises(DataError, match=str(MAX_CHARACTERS + 1)):
        bounded_reference(prompt("9" * (MAX_CHARACTERS + 1)))
