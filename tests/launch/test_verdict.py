"""Exit statuses and logs turned into a verdict: the invariants of `launch/verdict.py`."""

from __future__ import annotations

import signal

from hypothesis import given
from hypothesis import strategies as st
from launch_children import VLLM_LOG

from siri_megatron.launch.verdict import Failure, Verdict, explain_exit, failure, meaningful_lines, root_cause

FAILURES = [Failure("engine-0", "engine", "died", time=float("inf")),
            Failure("collector", "service", "lost it", time=5.0),
            Failure("learner-1", "main", "first", time=3.0), Failure("learner-0", "main", "second", time=4.0),
            Failure("learner-2", "main", "without words", time=float("inf"))]


@given(st.permutations(FAILURES))
def test_first_cause(failures: list[Failure]) -> None:
    assert list(root_cause(failures)) == FAILURES


def test_a_killed_learner_comes_before_those_that_lost_it() -> None:
    words = {"what": "RuntimeError: Connection closed by peer", "time": 3.0}
    lost = failure("learner-0", "main", 3, words, "", "x.log")
    killed, aborted = (failure("learner-1", "main", 128 + number, None, "", "x.log")
                       for number in (signal.SIGKILL, signal.SIGABRT))
    assert root_cause([lost, killed]) == (killed, lost)
    assert root_cause([aborted, lost]) == (lost, aborted)


def test_three_codes() -> None:
    assert [Verdict(status, "").exit_code for status in ("success", "failed", "interrupted")] == [0, 3, 130]


def test_meaningful_lines_of_a_vllm_log() -> None:
    assert meaningful_lines(VLLM_LOG) == ["ValueError: No available memory for the cache blocks."]


def test_meaningful_lines_keep_a_generic_error_when_there_is_nothing_better() -> None:
    assert meaningful_lines("x\nRuntimeError: Engine core initialization failed. See root cause above.\n") == [
        "RuntimeError: Engine core initialization failed. See root cause above."]


def test_meaningful_lines_of_an_argument_error() -> None:
    log = "usage: vllm serve [-h]\n    [--x]\nvllm serve: error: unrecognized arguments: --nope\n"
    assert meaningful_lines(log) == ["vllm serve: error: unrecognized arguments: --nope"]


def test_meaningful_lines_without_any_error() -> None:
    assert meaningful_lines("a\n\nb\nc\nd\ne\n") == ["b", "c", "d", "e"]
    assert meaningful_lines("") == []


@given(st.text(max_size=2000))
def test_meaningful_lines_are_few_and_short(text: str) -> None:
    lines = meaningful_lines(text)
    assert len(lines) <= 4
    assert all(0 < len(line) <= 300 for line in lines)


def test_explain_exit() -> None:
    assert explain_exit(0) == "ended before the run did"
    assert explain_exit(3) == "ended with status 3"
    assert explain_exit(128 + signal.SIGKILL) == "was killed by SIGKILL (out of memory, or by hand)"
    assert explain_exit(128 + signal.SIGSEGV) == "was killed by SIGSEGV"
    assert explain_exit(-signal.SIGKILL) == "its guard was killed by SIGKILL (out of memory, or by hand)"


@given(st.integers(-64, 255))
def test_every_status_can_be_explained(code: int) -> None:
    assert explain_exit(code)


def test_last_words_win_over_the_log() -> None:
    words = {"what": "tp=3", "rule": "r", "fix": "f", "time": 2.0}
    found = failure("learner-0", "main", 2, words, "ValueError: other", "x.log")
    assert (found.what, found.rule, found.fix, found.time) == ("tp=3", "r", "f", 2.0)
    assert failure("learner-0", "main", 2, None, "ValueError: other", "x.log").what == (
        "ended with status 2; its log ends:\n    ValueError: other")
