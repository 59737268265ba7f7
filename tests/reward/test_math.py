"""math-verify behind workers: a table of verdicts, and hostile texts that must not hang, crash or exhaust it.

Public faults guarded against: verl PR #5635 (alarm signals in a thread made every reward zero),
#5839 and #6673 (endless
waits once they were off); trl PR #5281 and AReaL PR #1426 (time-outs scored as wrong answers).
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import FAILED, KILLED, REFERENCE, RIGHT, Hostile, corpus
from judging import MEMORY, PATIENT, Characters, Judge, ids, judge, prompt, workers_of

from siri_megatron.errors import DataError
from siri_megatron.reward.extract import MAX_CHARACTERS
from siri_megatron.reward.math import MathVerifier, bounded_reference, compare, same_text
from siri_megatron.reward.verifier import Outcome, score
from siri_megatron.reward.workers import Limits

IMPATIENT = Limits(workers=1, timeout_s=1.0, memory_bytes=MEMORY)
QUICK = Limits(workers=2, timeout_s=20.0, memory_bytes=MEMORY)
"""For texts that take milliseconds: on a busy machine a shorter deadline would kill them for the machine's sake."""
RESIDENT_BYTES = 1 << 30
"""More than a worker with sympy ever takes (130 MB), less than its limit."""

EQUAL = [
    ("7", "7"), ("7", r"\boxed{7}"), ("7", "$7$"), ("7", r"\boxed{\frac{14}{2}}"), ("7", r"\boxed{7.0}"),
    ("7", r"\boxed{7.}"),
    ("7", r"\boxed{07}"), ("7", "The answer is 7."), ("7", "**Answer:** 7"), ("7", "so we get 3 + 4 = 7"), ("7", "7."),
    ("-7", "Answer: −7"), ("0.5", ".5"), (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"),
    (r"\frac12", r"\dfrac{1}{2}"),
    ("1/3", "0.333333"), ("1/3", "0.3333333333"), (r"\frac{14}{6}", r"\boxed{\frac{7}{3}}"),
    ("2:3", r"\boxed{\frac{2}{3}}"),
    ("0.05", "5%"), (r"5\%", "0.05"), (r"50\%", r"\boxed{\frac{1}{2}}"),
    ("5", r"\boxed{5\%}"),  # percent signs forgiven
    ("1000", "1,000"), ("1000", r"\boxed{1\,000}"), ("1000", "1{,}000"), ("10000", r"\boxed{10,\!000}"),
    ("1000000", "Answer: 1,000,000"), ("5000", r"\boxed{\$5,000}"), ("5000", "it costs $5,000"), (r"\$5", r"\boxed{5}"),
    (r"\frac{7}{2}", "Answer: 3 1/2"), (r"\frac{7}{2}", r"\boxed{3\frac{1}{2}}"), (r"3\frac{1}{2}", r"\boxed{3.5}"),
    (r"\frac{\pi}{4}", "Answer: pi/4"), (r"\frac{\pi}{4}", "π/4"), (r"\frac{\sqrt{3}}{2}", "Answer: sqrt(3)/2"),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{\frac{1}{2}\sqrt{3}}"), (r"\frac{\sqrt{3}}{2}", "0.866025"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\sqrt[3]{8}", r"\boxed{2}"), ("2^{100}", r"\boxed{1267650600228229401496703205376}"),
    ("20!", "2432902008176640000"),
    ("10^{20}", r"\boxed{100000000000000000000}"), (r"\binom{40}{20}", "137846528820"), ("10^{-3}", "0.001"),
    (r"1.5\times 10^3", "1500"), (r"6.02 \times 10^{23}", "6.02e23"), (r"\log_2 8", "3"),
    (r"\log_{10} 100", r"\boxed{2}"),
    ("5", r"\boxed{x=5}"), ("x=5", r"\boxed{5}"), ("x=5", "Answer: x = 5"), ("30", r"\boxed{30^\circ}"),
    (r"30^\circ", "30°"),
    ("5", r"\boxed{5\text{ cm}}"), (r"5\text{ cm}", "5"),
    (r"5\text{ cm}", r"\boxed{5\text{ m}}"),  # units are not compared
    (r"\text{east}", r"\boxed{\text{east}}"), (r"\text{east}", "Answer: east"), (r"\text{(B)}", "Answer: B"),
    ("B", r"\boxed{(B)}"), ("B", r"\boxed{\text{B}}"), ("[1,2)", r"\boxed{[1, 2)}"), ("1<x<2", r"\boxed{(1,2)}"),
    (r"x \in [1,2]", r"\boxed{[1,2]}"), ("[1,2]", r"\boxed{x \in [1,2]}"), ("2x+2", r"\boxed{2(x+1)}"), ("a+b", "b+a"),
    ("x^2-1", r"\boxed{(x-1)(x+1)}"), (r"\frac{1}{x+1}", r"\boxed{(x+1)^{-1}}"), (r"\sin^2 x+\cos^2 x", r"\boxed{1}"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{(3,\infty)\cup(-\infty,2)}"), ("3+4i", r"\boxed{4i+3}"),
    (r"\pm 3", "3, -3"),
    (r"3 \pm \sqrt{2}", r"\boxed{3+\sqrt{2}, 3-\sqrt{2}}"), (r"\emptyset", r"\boxed{\{\}}"),
    ("(1,2)", r"\boxed{(1, 2)}"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"), ("1,2", r"\boxed{2,1}"), ("3,5", r"\boxed{3} and \boxed{5}"),
    ("x=1, y=2", r"\boxed{y=2, x=1}"), (r"x \ge 3", r"\boxed{3 \le x}"), ("x+y=3", r"\boxed{y = 3-x}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}"),
    ("4x^2", r"\boxed{4 x^{2}}"), (r"2 \cdot 3", "6"), (r"\lfloor 3.7 \rfloor", "3"), ("0.1+0.2", "0.3"),
    ("12", "12 apples"),
    (r"\left(\frac{1}{2}, 3\right)", r"\boxed{(\frac12,3)}"), ("y=2x+1", r"\boxed{2x - y + 1 = 0}"),
    ("-16t^2+64t", r"\boxed{-16t(t-4)}"), ("2ab", r"\boxed{2ba}"), ("3+2t", r"\boxed{2t+3}"),
    ("3 + t", r"\boxed{t + 3}"), ("3m", r"\boxed{m+2m}"), (r"\frac{2ab}{3}", r"\boxed{\frac{2}{3}ab}"),
    ("a d", r"\boxed{ad}"),
    (r"2x\text{ cm}", r"\boxed{x+x}"), (r"2x", r"\boxed{2x\text{ cm}^2}."), ("2\\pi h", r"\boxed{h\pi + \pi h}"),
    ("6", r"\boxed{6\text{ cm}}"), (r"5\text{ cm}", r"\boxed{5}"), ("5 cm", r"\boxed{5}"), ("5cm", r"\boxed{5}"),
    ("5", "5 m"), ("12", r"\boxed{12m}"), ("12 m", r"\boxed{12}"), (r"\frac{3}{4} kg", r"\boxed{0.75}"),
    (r"4\pi cm", r"\boxed{4\pi}"), (r"10\text{ m/s}", r"\boxed{10}"), ("7 apples", r"\boxed{7}"),
    (r"\frac{7}{2}", r"\boxed{3 1/2}"), (r"\frac{7}{2}", r"\boxed{3\ 1/2}"), ("3.5", r"\boxed{3~1/2}"),
    (r"\frac{11}{4}", r"\boxed{2 3/4 \text{ cups}}"), (r"\frac{11}{4}", r"\boxed{2\ \frac{3}{4}}"),
    (r"\frac13", r"\boxed{0.\overline{3}}"), (r"0.1\overline{6}", r"\boxed{1/6}"), ("-1/3", r"\boxed{-0.\bar{3}}"),
    (r"5.\overline{054}", r"\boxed{\frac{187}{37}}"), ("1", r"0.\overline{9}"), (r".\overline{3}", r"\boxed{1/3}"),
    ("1011_2", r"\boxed{1011_{2}}"), ("1011_2", r"\boxed{13_8}"), ("B_{16}", r"\boxed{B_{16}}"),
    ("A1_{16}", r"\boxed{161_{10}}"), ("x_1 + 2", r"\boxed{2 + x_1}"),
]
DIFFERENT = [
    ("7", "8"), ("7", "no idea"), ("7", ""), ("7", "-7"), ("-3", "3"), ("-x", r"\boxed{x}"), ("7", r"\boxed{7"),
    ("1/3", "0.333"), ("1/3", "0.33"), (r"33\%", r"\boxed{\frac{1}{3}}"), ("0.999999", "1"), ("123456789", "123456788"),
    ("(1,2)", r"\boxed{(2,1)}"), ("(3, 5, 7)", r"\boxed{(7,5,3)}"), ("[1,2)", r"\boxed{[1,2]}"),
    ("1,000", r"\boxed{(1, 000)}"),
    ("(1, 000)", "1,000"), ("10", "Answer: 10^{-3}"), ("2", "Answer: (1, 2)"), ("2", "Answer: 2^{100}"),
    ("2", "Answer: 3 1/2"),
    ("0", r"\boxed{1\,000}"), ("x=5", r"\boxed{y=5}"), (r"\text{east}", r"\boxed{\text{west}}"), ("B", r"\boxed{C}"),
    ("x^2-1", r"\boxed{(x-1)^2}"), (r"\pm 3", r"\boxed{3}"), ("3", r"\boxed{\pm 3}"), (r"-\infty", r"\boxed{\infty}"),
    ("3+4i", r"\boxed{3-4i}"), (r"x \ge 3", r"\boxed{x > 3}"), ("5", r"\boxed{3} or \boxed{5}"), ("5", r"\boxed{3, 5}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\\4&3\end{pmatrix}}"), ("|x|", r"\boxed{x}"),
    ("12", "twelve"), ("12", "Answer: 13 or 12"), ("7", "it is 7, so the answer is 8"), ("7", r"7 \boxed{8} 7"),
    ("31/2", "Answer: 3 1/2"), (r"\frac{1}{2}", "Answer: 2"), ("5", r"\boxed{x=5, y=6}"),
    (r"\ln 2", r"\boxed{\log_{10} 2}"),
    ("-16t^2+64t", r"\boxed{-16t^2+64}"), ("2ab", r"\boxed{2}"), ("2ab", r"\boxed{2bc}"), ("3+2t", r"\boxed{5}"),
    ("2\\pi h", r"\boxed{2\pi}"), ("a+b+2c", r"\boxed{a+b+2}"), ("a^2+2ab", r"\boxed{a^2+2}"), ("3 + t", r"\boxed{3}"),
    ("x t", r"\boxed{x}"), ("2", r"\boxed{3 1/2}"), ("31/2", r"\boxed{3\ 1/2}"), (r"0.\overline{3}", r"\boxed{0.3}"),
    (r"0.\overline{3}", r"\boxed{0.333}"), (r"0.1\overline{6}", r"\boxed{0.\overline{16}}"),
    ("1011_2", r"\boxed{1011_3}"), ("1011_2", r"\boxed{1101_2}"), ("5", r"\boxed{6\text{ cm}}"),
]
ASYMMETRIC = [("1<x<2", "(1,2)")]
"""Equal with this reference and that answer, not the other way round: the reference says how an answer is read."""


@pytest.fixture(scope="module")
def patient() -> Iterator[Judge]:
    with judge() as one:
        yield one


def test_the_tables_are_large() -> None:
    assert len(set(EQUAL + DIFFERENT)) == len(EQUAL + DIFFERENT) >= 100


@pytest.mark.parametrize(("pairs", "expected"), [(EQUAL, "right"), (DIFFERENT, "wrong")], ids=["same", "other"])
def test_verdicts(patient: Judge, pairs: list[tuple[str, str]], expected: str) -> None:
    outcomes = patient.outcomes(pairs)
    assert {pair: outcome for pair, outcome in zip(pairs, outcomes, strict=True) if outcome != expected} == {}


def test_asymmetry(patient: Judge) -> None:
    assert patient.outcomes(ASYMMETRIC) == ["right"] * len(ASYMMETRIC)
    assert patient.outcomes([(answer, reference) for reference, answer in ASYMMETRIC]) == ["wrong"] * len(ASYMMETRIC)


def test_a_reference_without_meaning_gives_no_verdict(patient: Judge) -> None:
    assert patient.outcomes([("", "7"), ("  ", "  7")]) == ["failed", "failed"]


def test_same_text_needs_no_worker() -> None:
    assert same_text(r"\frac{1}{2}", r"\boxed{\frac{1}{2}}")
    assert same_text(r"$\left( 1,  2 \right)$", r"\boxed{( 1, 2 )}")
    for reference, answer in (("31/2", "3 1/2"), ("", ""), ("(1, 000)", "(1,000)"), ("5", r"\boxed{3} and \boxed{5}")):
        assert not same_text(reference, answer)


def test_judging_needs_no_main_thread() -> None:
    """verl PR #5635: math-verify's own alarms raise outside of the main thread, and every reward was zero."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend([compare("7", r"\boxed{\frac{14}{2}}"), compare("7", "8")]))
    thread.start()
    thread.join()
    assert found == [True, False]


def test_boxed_scope_is_judged_at_every_budget(patient: Judge) -> None:
    async def run() -> dict[int, float]:
        verifier = MathVerifier(Characters(), "boxed", PATIENT)  # type: ignore[arg-type]
        text = r"\boxed{6} wait \boxed{\frac{14}{2}} or \boxed{8}"
        scored = await score(verifier, prompt("7"), ids(text), 99, (5, 9, 35, 99), (0,))
        await verifier.close()
        return scored.budgets

    assert asyncio.run(run()) == {5: 0.0, 9: 0.0, 35: 1.0, 99: 0.0}


def test_reference_out_of_bounds_is_refused() -> None:
    with pytest.raises(DataError, match=str(MAX_CHARACTERS + 1)):
        bounded_reference(prompt("9" * (MAX_CHARACTERS + 1)))


def check_corpus(texts: list[Hostile], limits: Limits) -> dict[str, Outcome]:
    """Everything ends as it may, workers go on serving, stay small, and are gone after the end; gives the outcomes."""
    before = workers_of(os.getpid())
    with judge(limits=limits) as one:
        outcomes = one.outcomes([(REFERENCE, hostile.text) for hostile in texts])
        wrong = {hostile.name: outcome for hostile, outcome in zip(texts, outcomes, strict=True)
                 if outcome not in hostile.allowed and not (outcome == "failed" and hostile.allowed != RIGHT)}
        assert wrong == {}
        assert one.outcomes([("7", "so it is 7"), ("7", "so it is 8")]) == ["right", "wrong"]
        own = [pid for pid in workers_of(os.getpid()) if pid not in before]
        assert 1 <= len(own) <= limits.workers
        assert max(map(resident, own)) < RESIDENT_BYTES
        assert 0 < sum(one.verifier.failures.counts.values()) <= outcomes.count("failed")  # alike ones are judged once
    assert workers_of(os.getpid()) == before
    return {hostile.name: outcome for hostile, outcome in zip(texts, outcomes, strict=True)}


def resident(pid: int) -> int:
    """Bytes of memory that a process uses; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1]) * 4096


def test_hostile_texts_crash_and_exhaust_nothing() -> None:
    texts = [hostile for hostile in corpus() if not hostile.slow]
    assert len({hostile.text for hostile in texts}) >= 200
    check_corpus(texts, QUICK)


def test_hostile_texts_hang_nothing() -> None:
    outcomes = check_corpus([hostile for hostile in corpus() if hostile.name in KILLED], IMPATIENT)
    assert outcomes == dict.fromkeys(KILLED, "failed")


def test_the_failed_are_known_without_a_worker() -> None:
    """A patient verifier that never starts a worker judges them: nothing waits for a deadline."""
    texts, before = [one.text for one in corpus() if one.allowed in (FAILED, RIGHT)], workers_of(os.getpid())
    with judge(limits=Limits(1, 1e6, MEMORY)) as one:
        assert set(one.outcomes([(REFERENCE, text) for text in texts])) == {"right", "failed"}
        assert workers_of(os.getpid()) == before


@pytest.mark.soak
def test_whole_corpus() -> None:
    check_corpus([hostile for hostile in corpus() if not hostile.slow], QUICK)
    check_corpus([hostile for hostile in corpus() if hostile.slow], IMPATIENT)


@pytest.mark.soak
def test_random_strings() -> None:
    """Concatenations of what formulas and hostile texts are made of; every one ends, and none can equal pi^7/1013."""
    pieces = ["\\frac{", "}", "{", "^", "(", ")", "\\sqrt{", "x", "7", "99", "!", "+", "-", "=", ",", "\\boxed{",
              "\\", "\\sum_{n=1}^{", "\\int", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\text{", "|", "<",
              "%", "\x00", "é", "\\log", "\\pi", "i", "e", "answer is ", "\\left(", "\\right)", "[", "]", "\\cup",
              "\\infty", "\\binom{", "$", " "]
    random_ = random.Random(5)
    texts = ["".join(random_.choices(pieces, k=random_.randint(1, 40))) for _ in range(3000)]
    with judge(limits=IMPATIENT) as one:
        for begin in range(0, len(texts), 500):
            batch = texts[begin:begin + 500] + [f"\\boxed{{{text}}}" for text in texts[begin:begin + 500]]
            outcomes = one.outcomes([(r"\frac{\pi^7}{1013}", text) for text in batch])
            assert set(outcomes) <= {"wrong", "failed"}
            assert outcomes.count("failed") < len(batch) / 2
