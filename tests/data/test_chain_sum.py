"""The chain task: splits, tiers, determinism; answers by Python's own arithmetic; chains re-read by another parser."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.data.chain_sum import ALPHABET, Chain, answer, draw_chain, held_out, problems, question
from siri_megatron.data.chain_sum_teacher import PRESETS, respond
from siri_megatron.data.teaching import FORMS, MAX_RESULTS, Slips, Style, Teacher

CHAINS = st.builds(lambda numbers, seed: draw_chain("train", numbers, random.Random(seed)),
                   st.integers(2, 9), st.integers(0, 10**6))
TERM, COLUMN = r"[a-k][+-][1-9]", r"1?\d[+-][1-9]=1?\d"
LINE = re.compile(rf"~(?P<filler>\d\d)|(?P<terms>(?:{TERM}){{1,2}})=(?P<result>\d\d)"
                  rf"|(?:\?|(?P<opened>{TERM}):)(?P<column>{COLUMN}):(?P<worked>\d\d)")
LINE_TEXT = re.sub(r"\?P<\w+>", "?:", LINE.pattern)


def by_hand(text: str) -> tuple[int, list[int]]:
    """(value, values on the way) of `47a+8b-3=`, digit by digit: a plain implementation without eval and sum."""
    text = "".join(character for character in text if not character.isalpha())
    number, sign, total, way = 0, 1, 0, []
    for character in text:
        if character.isdigit():
            number = 10 * number + "0123456789".index(character)
        else:
            total = total + number if sign > 0 else total - number
            way.append(total)
            number, sign = 0, -1 if character == "-" else 1
    return total, way


def faults(chain: Chain, response: str) -> list[str]:
    """What is wrong with a response, re-read line by line: every result against the value that it starts from."""
    body, _, said = response.rpartition("A")
    found = [] if said == answer(chain) else [f"answer {said}"]
    for attempt in re.split(r"A\d\dR", body):
        found += _attempt_faults(chain, attempt)
    return found


def _attempt_faults(chain: Chain, text: str) -> list[str]:
    found = [] if text[:2] == str(chain[0]) else [f"begins with {text[:2]}"]
    left = [f"{name}{term:+d}" for name, term in zip("abcdefghijk", chain[1:], strict=False)]
    at, before, after = 2, 0, chain[0]
    done: list[str] = []
    redone = 0  # changes of the last step that the check being read has redone
    while at < len(text):
        line = LINE.match(text, at)
        if line is None:
            return [*found, f"unreadable: {text[at:]}"]
        at = line.end()
        if line["filler"]:
            found += [] if int(line["filler"]) == after else [f"filler {line.group()}"]
            continue
        if line.group().startswith("?"):
            redone %= len(done)
            start = after if redone else before
            terms, redone = done[redone:redone + 1], redone + 1
        else:
            terms = re.findall(TERM, line["terms"] or line["opened"])
            start = before = after
            found += [] if [left.pop(0) for _ in terms] == terms else [f"terms {line.group()}"]
            done, redone = terms, 0
        if line["column"]:
            work, _, column = line["column"].partition("=")
            found += [] if eval(work) == int(column) else [f"column {line.group()}"]
            found += [] if work.endswith(terms[0][1:]) and work[-3] == str(start)[-1] else [f"operands {line.group()}"]
        after = start + sum(int(term[1:]) for term in terms)
        found += [] if int(line["result"] or line["worked"]) == after else [f"result {line.group()}"]
    return found + [f"left over {left}"] * bool(left)


def test_splits_are_disjoint() -> None:
    train, evaluation = ({problem.prompt for problem in problems(split, 3000, seed=seed)} for split, seed in
                         (("train", 1), ("eval", 2)))
    assert not train & evaluation
    rng = random.Random(3)
    assert all(held_out(draw_chain("eval", numbers, rng)) for numbers in range(2, 10))


def test_about_one_in_ten_is_held_out_in_every_tier() -> None:
    rng = random.Random(0)
    for numbers in range(2, 10):
        drawn = [held_out((rng.randint(10, 99), *rng.choices(range(1, 10), k=numbers - 1))) for _ in range(4000)]
        assert 0.08 < sum(drawn) / len(drawn) < 0.12


def test_deterministic_and_prefix() -> None:
    assert problems("train", 300, seed=3) == problems("train", 300, seed=3)
    assert problems("train", 300, seed=3) == problems("train", 500, seed=3)[:300]
    assert problems("train", 300, seed=3) != problems("train", 300, seed=4)


def test_every_tier_is_present() -> None:
    counts = Counter(problem.tier for problem in problems("eval", 252))
    assert counts == {f"k={k}": 42 for k in range(2, 8)}


def test_held_out_problems_do_not_repeat_at_the_default_size() -> None:
    assert len({problem.prompt for problem in problems("eval", 252)}) == 252


def test_answers_are_those_of_python_and_of_plain_arithmetic() -> None:
    for problem in problems("train", 600):
        total, way = by_hand(problem.prompt)
        assert problem.answer == str(total) == str(eval(re.sub("[a-k=]", "", problem.prompt)))
        assert all(10 <= value <= 99 for value in way)
        assert problem.tier == f"k={len(way)}"


@given(CHAINS)
def test_questions_are_in_the_grammar(chain: Chain) -> None:
    text = question(chain)
    assert re.fullmatch(rf"\d\d(?:{TERM})+=", text)
    assert "".join(re.findall("[a-k]", text)) == "abcdefghijk"[: len(chain) - 1]
    assert set(text) <= set(ALPHABET)


@given(CHAINS, st.sampled_from(sorted(PRESETS)), st.integers(0, 1000))
def test_well_formed(chain: Chain, preset: str, seed: int) -> None:
    response = respond(chain, PRESETS[preset], random.Random(seed))
    assert re.fullmatch(rf"(?:\d\d(?:{LINE_TEXT})*A\d\dR)*\d\d(?:{LINE_TEXT})*A\d\d", response)
    assert set(response) <= set(ALPHABET)
    assert response == respond(chain, PRESETS[preset], random.Random(seed))


@given(CHAINS, st.integers(0, 1000), st.tuples(*[st.floats(0.1, 1)] * 3))
def test_a_teacher_without_slips_is_always_right(chain: Chain, seed: int, mix: tuple[float, float, float]) -> None:
    """Every column, line, check, filler and answer, by the test's own parser."""
    teacher = Teacher((Style(mix=mix, check=0.5, filler=0.4, restart=0.3),))
    assert faults(chain, respond(chain, teacher, random.Random(seed))) == []


@pytest.mark.parametrize(("response", "fault"), [
    ("47a+8=54b-3=51A51", "result a+8=54"),
    ("47a+8:7+8=14:55b-3=52A52", "column"),
    ("47a+8:6+8=14:55b-3=52A52", "operands"),
    ("47a+8=55~54b-3=52A52", "filler"),
    ("47a+8=55?7+8=15:54b-3=52A52", "result ?7+8=15:54"),
    ("47a+8=55A55", "left over"),
    ("47b-3=44a+8=52A52", "terms"),
    ("47a+8=55b-3=52A51", "answer 51"),
    ("46a+8=55b-3=52A52", "begins with 46"),
    ("47a+8=55=b-3=52A52", "unreadable"),
])
def test_the_parser_finds_faults(response: str, fault: str) -> None:
    """Negative control: each kind of wrong line is seen."""
    assert any(found.startswith(fault) for found in faults((47, 8, -3), response))
    assert faults((47, 8, -3), "47a+8b-3=52?7+8=15:55?5-3=2:52~52A52") == []


@given(CHAINS, st.integers(0, 1000))
def test_columns_agree(chain: Chain, seed: int) -> None:
    """However it slips, the result of a worked line ends in the digit of its column."""
    teacher = Teacher((Style(check=0.5),), Slips(explicit=0.6, check=0.6))
    for line in LINE.finditer(respond(chain, teacher, random.Random(seed))):
        if line["column"]:
            assert line["worked"][-1] == line["column"][-1]


@pytest.mark.parametrize("form", FORMS)
def test_slips_occur_at_the_stated_rate(form: str) -> None:
    """One unchecked step: the error rate is the slip's probability (3 sigma of 4000 draws is 0.022)."""
    teacher = Teacher((Style(mix=tuple(float(f == form) for f in FORMS)),), Slips(**{form: 0.3}))  # type: ignore[arg-type]
    chain = (47, 8, -3) if form == "skip" else (47, 8)
    rng = random.Random(7)
    wrong = sum(respond(chain, teacher, rng)[-2:] != answer(chain) for _ in range(4000))
    assert abs(wrong / 4000 - 0.3) < 0.022


def test_a_step_is_done_so_often_and_no_more() -> None:
    teacher = Teacher((Style(check=1.0),), Slips(explicit=1.0, check=1.0))
    rng = random.Random(5)
    counts = {respond((47, 8), teacher, rng).count("?") for _ in range(300)}
    assert max(counts) == MAX_RESULTS - 1
    assert min(counts) >= 1


@pytest.mark.parametrize(("preset", "right", "tokens", "easy", "hard"), [
    ("clean", 1.0, 56.4, 1.0, 1.0), ("noisy", 0.557, 61.7, 0.80, 0.37)])
def test_presets_are_right_and_long_as_stated(preset: str, right: float, tokens: float, easy: float,
                                              hard: float) -> None:
    """The table of the teacher's docstring; a tier has 1000 draws, three sigma of a rate are at most 0.048."""
    rng = random.Random(1)
    chains = [draw_chain("train", 2 + index % 6, rng) for index in range(6000)]
    responses = [respond(chain, PRESETS[preset], rng) for chain in chains]
    correct = [response[-2:] == answer(chain) for response, chain in zip(responses, chains, strict=True)]
    assert sum(correct) / 6000 == pytest.approx(right, rel=0.03)
    assert sum(map(len, responses)) / 6000 + 1 == pytest.approx(tokens, rel=0.03)
    assert sum(correct[0::6]) / 1000 == pytest.approx(easy, abs=0.05)
    assert sum(correct[5::6]) / 1000 == pytest.approx(hard, abs=0.05)
