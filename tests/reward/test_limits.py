"""Hopeless texts are refused, legitimate answers never. Oracle for sizes: exact logarithms of generated powers."""

from __future__ import annotations

import math

import pytest
from hostile import FAILED, corpus
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.limits import MAX_NESTING, hopeless, nesting, tower
from siri_megatron.reward.notation import rewritten
from siri_megatron.reward.scope import scoped_text

LEGITIMATE = [
    "7", "-3", "0.333", "1,000,000", "3\\frac{1}{2}", "3 1/2", "5\\%", "50%", "2^{100}", "10^{20}", "10^{-10}",
    "20!", "2023!",
    "\\binom{40}{20}", "\\binom{2023}{1011}", "2^{2023}", "x^{2023}", "3^{3^3}", "2^{2^{5}}+1", "10^{10^{6}}",
    "x^{x^{x}}",
    "\\frac{1}{1+\\frac{1}{1+\\frac{1}{1+\\frac{1}{2}}}}", "\\sqrt{2+\\sqrt{2+\\sqrt{2+\\sqrt{2}}}}", "e^{-x^2/2}",
    "\\begin{pmatrix} 1 & 2 & 3 \\\\ 4 & 5 & 6 \\\\ 7 & 8 & 9 \\end{pmatrix}", "(-\\infty, -2] \\cup [3, \\infty)",
    "\\{1, 2, 3\\}", "\\left\\{ (x, y) : x + y = 1 \\right\\}", "(1, 2, 3)",
    "\\left( \\frac{1}{2}, -\\frac{3}{4} \\right)",
    "5\\text{ cm}^2", "90^\\circ", "\\frac{\\pi}{4}", "\\pi r^2 h", "x = 5", "y = 2x + 1", "x = 1, y = 2", "\\pm 3",
    "3 \\pm 2\\sqrt{5}", "1.5 \\times 10^{8}", "6.02e23", "\\$12.50", "\\text{east}", "\\text{(B)}",
    "\\text{no solution}",
    "|x - 3| < 5", "||x| - 1|", "\\left| \\left| x \\right| - |y| \\right|", "x \\in [1, 2]", "5 != 3", "n!", "9!!",
    "\\frac{20!}{10! \\cdot 10!}", "\\sum_{k=1}^{n} k^2", "\\int_0^1 x^2 \\, dx", "\\lim_{n \\to \\infty} \\frac{1}{n}",
    "\\lfloor x \\rfloor", "a_{n+1}", "a_1, a_2, \\ldots, a_n", "0.\\overline{3}", "0.1234567890123456789", "12:30",
    "2:3",
    "f(g(h(x)))", "((((((1+2)*3)-4)*5)-6)*7)", "\\sin^2 \\theta + \\cos^2 \\theta", "\\log_2 10", "\\sqrt[3]{2}",
    "3 + 4i",
    "(2^{10})^{10}", "7^{7^{2}}", "1000000007", "2^{1000000}", "10!!", "2--3", "x>>1", "...", "1010_2",
    "\\overline{AB}",
    "1 + x + x^2 + x^3 + x^4 + x^5 + x^6 + x^7 + x^8 + x^9 + x^{10} + x^{11} + x^{12}",
    "123456789012345678901234567890",
    "3^{2} \\cdot 5^{3} \\cdot 7^{11}", "\\frac{2^{64}-1}{3}", "p^{k} - p^{k-1}", "\\mathbb{R} \\setminus \\{0\\}",
    "| a | b |\n|-------------|------------|\nthe total is 7", "So we get\n--------------------\n7"]


@pytest.mark.parametrize("text", LEGITIMATE)
def test_legitimate_pass(text: str) -> None:
    for form in (text, f"\\boxed{{{text}}}", f"Answer: ${text}$"):
        assert hopeless(form) is None


def test_the_failures_of_the_corpus_are_refused_unseen() -> None:
    meant = [hostile for hostile in corpus() if hostile.allowed == FAILED]
    assert len(meant) >= 15
    for hostile in meant:
        stated = scoped_text(hostile.text, "all")
        assert stated
        assert hopeless(stated), hostile.name


@st.composite
def powers(draw: st.DrawFn) -> tuple[str, float, float]:
    """(a tower of numbers, log10 of its largest exponent, log10 of its value)."""
    base, height = draw(st.integers(2, 99)), draw(st.integers(0, 3))
    text, value, exponent = str(base), math.log10(base), -math.inf
    for _ in range(height):
        below = draw(st.integers(2, 99))
        exponent = max(exponent, value)
        text = f"{below}{draw(st.sampled_from(['^', '**']))}{draw(st.sampled_from(['{%s}', '(%s)']))}" % text
        value = min(1e300, 10**min(value, 290) * math.log10(below))
    return text, exponent, value


@given(powers())
def test_powers_are_sized_exactly(made: tuple[str, float, float]) -> None:
    text, exponent, _ = made
    if exponent <= 6 - 1e-9:
        assert hopeless(text) is None
    if exponent >= 6 + 1e-9:
        assert hopeless(text) is not None


@given(st.integers(1, 60), st.sampled_from(["()", "[]", "{}"]))
def test_nesting_counts(depth: int, pair: str) -> None:
    text = "x" + pair[0] * depth + "1" + pair[1] * depth + "+(2)"
    assert nesting(text) == depth
    assert (hopeless(text) is not None) == (depth > MAX_NESTING)


def test_tower_counts() -> None:
    assert [tower(text) for text in ("x", "x^2", "x^{y^{z}}", "x^{y^z}", "(x^2)^3", "a^b^c^d", "x^{2}+y^{2}")] \
        == [0, 1, 2, 1, 1, 3, 1]


@given(st.text(max_size=200) | st.text(alphabet="0123456789^*!(){}\\ #\n", max_size=200))
def test_any_text_is_decided(text: str) -> None:
    assert hopeless(text) is None or isinstance(hopeless(text), str)


@pytest.mark.parametrize(("text", "expected"), [
    ("1\\,000", "1000"), ("10,\\!000", "10000"), ("1{,}000{,}000", "1000000"), ("3 1/2", "3\\frac{1}{2}"),
    ("3 \\frac{1}{2}", "3\\frac{1}{2}"), ("pi/4", "\\pi /4"), ("2π", "2\\pi "), ("−3", "-3"), ("30°", "30^\\circ"),
    ("6.02e23", "6.02\\times 10^{23}"), ("\\$5", "5"), ("7.", "7"), ("\\boxed{7.}", "\\boxed{7}"), ("√2", "\\sqrt{2}")])
def test_misread_notations_are_rewritten(text: str, expected: str) -> None:
    assert rewritten(text) == expected


@pytest.mark.parametrize("text", [
    "1,000", "(1,\\,000)", "\\frac{1}{2}", "x = 1/2", "2 1", "a_1 1/2", "spin", "\\pi r^2",
    "e^2", "1.5", "\\sqrt{2}", "5!", "$x$", "2e", "x^{2} 1/2"])
def test_same_notation_stays(text: str) -> None:
    assert rewritten(text) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_plain_numbers_stay(number: object) -> None:
    assert rewritten(f"{number:f}") == f"{number:f}"
