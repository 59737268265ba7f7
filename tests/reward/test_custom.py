"""Custom rewards: refused at the start or isolated as math-verify is; and the workers that isolate both.

Public faults guarded against: verl PR #5839 and #6673 (a reward that hangs stops everything), NeMo-Gym #1351 (a dead
service scored as wrong answers).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from judging import Characters, command, gone_within, ids, prompt, workers_of

from siri_megatron.config import RewardConfig
from siri_megatron.errors import ConfigError, RunFailed
from siri_megatron.launch import procfs
from siri_megatron.reward import workers as workers_module
from siri_megatron.reward.custom import CustomVerifier, check, checked, load
from siri_megatron.reward.verifier import build_verifier, score
from siri_megatron.reward.workers import Limits

HERE = Path(__file__).parent
FOREIGN = str(HERE / "foreign.py")
LIMITS = Limits(workers=2, timeout_s=2.0, memory_bytes=2 << 30)
ENDS_S = 20.0


class Foreign:
    """A custom verifier on a loop of its own."""

    def __init__(self, function: str, limits: Limits = LIMITS) -> None:
        self.runner = asyncio.Runner()
        self.verifier = CustomVerifier(Characters(), f"{FOREIGN}:{function}", limits)  # type: ignore[arg-type]

    def rewards(self, *responses: str, reference: str = "7") -> list[float]:
        async def run() -> list[float]:
            return await asyncio.gather(*(self.verifier.judge(prompt(reference), response) for response in responses))

        return self.runner.run(run())

    def close(self) -> None:
        self.runner.run(self.verifier.close())
        self.runner.close()


@pytest.fixture(scope="module")
def acting() -> Iterator[Foreign]:
    one = Foreign("acts")
    yield one
    pids = workers_of(os.getpid())
    one.close()
    assert gone_within(pids, ENDS_S) == []


@pytest.mark.parametrize("deed", ["program", "left behind"])
def test_what_a_reward_starts_ends_with_its_worker(deed: str) -> None:
    """A reward that runs the model's program: one that hangs would live on beside the engines, one more each time."""
    seconds = f"{600 + os.getpid() / 1e7:.7f}"
    one = Foreign("acts", Limits(workers=1, timeout_s=1.0, memory_bytes=2 << 30))
    try:
        assert all(map(math.isnan, one.rewards(deed, deed, reference=seconds)))
        assert len(gone_within(programs(seconds), 2.0)) <= 1  # the last one's: its worker may not be buried yet
        assert one.rewards("fine") == [1.0]
    finally:
        one.close()
    assert gone_within(programs(seconds), ENDS_S) == []


def programs(seconds: str) -> list[int]:
    return [pid for pid in procfs.parents() if command(pid).strip().endswith(f"sleep {seconds}")]


def test_bad_behaviour_is_no_verdict_and_workers_go_on(acting: Foreign, caplog: pytest.LogCaptureFixture) -> None:
    bad = ("hang", "hang in C", "memory", "exit", "die", "crash", "unpicklable", "recurse")
    with caplog.at_level(logging.WARNING):
        rewards = acting.rewards(*bad, "fine", "hang", "fine")
    assert [math.isnan(reward) for reward in rewards] == [True] * 8 + [False, True, False]
    assert acting.rewards("fine", "fine") == [1.0, 1.0]
    counts = acting.verifier.failures.counts
    assert counts == {
        "no result within 2 s": 3, "out of memory (reward.memory_gib)": 1, "SystemExit in the verifier": 1,
        "worker died with status 3": 1, "worker killed by SIGSEGV": 1, "TwoArguments in the verifier": 1,
        "RecursionError in the verifier": 1}
    assert sum("raise TwoArguments" in record.message for record in caplog.records) == 1


def test_an_idle_worker_that_dies_is_replaced(acting: Foreign) -> None:
    """The kernel's out-of-memory killer takes any process; Pebble gives up its whole pool then."""
    assert acting.rewards("fine") == [1.0]
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    assert acting.rewards(*["fine"] * 20) == [1.0] * 20


def test_workers_that_cannot_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "PULSE_S", 0.2)
    one = Foreign("no_such_function")
    with pytest.raises(RunFailed, match="died one after the other"):
        one.rewards("fine")
    one.close()


ORPHANS = """
import asyncio, sys
sys.path.insert(0, {here!r})
from test_custom import Foreign, LIMITS, Limits
from judging import workers_of
import os
def main():
    one = Foreign("acts", Limits(2, 3600.0, 2 << 30))
    one.rewards("fine", "fine")
    print(*workers_of(os.getpid()), flush=True)
    one.rewards({response!r}, "fine")
    print("served", flush=True)
    sys.stdin.read()
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("response", ["hang in C", "fine"], ids=["busy", "idle"])
def test_workers_die_with_a_killed_collector(tmp_path: Path, response: str) -> None:
    """SIGKILL of the parent: an idle worker sees the closed pipe, a busy one needs the parent-death signal."""
    script = tmp_path / "collector.py"
    script.write_text(ORPHANS.format(here=str(HERE), response=response))
    parent = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    if response == "fine":
        assert parent.stdout.readline() == "served\n"
    assert all("spawn_main" in command(pid) for pid in pids)
    parent.kill()
    parent.wait(ENDS_S)
    assert gone_within(pids, ENDS_S) == []
    parent.stdout.close()


def test_partial_rewards_at_every_budget() -> None:
    async def run() -> tuple[float, str, dict[int, float]]:
        config = RewardConfig(verifier="custom", custom=f"{FOREIGN}:half", timeout_s=60.0)
        verifier = build_verifier(config, Characters())  # type: ignore[arg-type]
        scored = await score(verifier, prompt("12"), ids("1234"), 3, (1, 2, 3, 4), (0,))
        await verifier.close()
        return scored.reward, scored.outcome, scored.budgets

    assert asyncio.run(run()) == (0.5, "partial", {1: 0.0, 2: 1.0, 3: 0.5, 4: 0.5})


@pytest.mark.parametrize(("asked", "expected"), [("true", 1.0), ("none", None), ("one", 1.0), ("prompt", 1.0)])
def test_results_are_rewards(asked: str, expected: float | None) -> None:
    reward = checked(load(f"{FOREIGN}:says")("?", "7", asked))
    assert math.isnan(reward) if expected is None else reward == expected


@pytest.mark.parametrize("asked", ["two", "text", "nan", "list"])
def test_other_results_are_errors(asked: str) -> None:
    with pytest.raises(ValueError, match="returned"):
        checked(load(f"{FOREIGN}:says")("?", "7", asked))


@pytest.mark.parametrize(("spec", "told"), [
    ("rewards", "package.module:function"), ("rewards.py:not an identifier", "package.module:function"),
    ("{tmp}/none.py:score", "is no file"), ("no_such_package.rewards:score", "No module named 'no_such_package'"),
    (f"{FOREIGN}:not_callable", "has no function"), (f"{FOREIGN}:two_arguments", r"signature \(prompt"),
    (f"{FOREIGN}:asynchronous", "async"),
    ("{tmp}/broken.py:score", r"SyntaxError.*broken.py:1"), ("{tmp}/exiting.py:score", "SystemExit"),
    ("{tmp}/raising.py:score", r"KeyError: 'x' \(.*raising.py:2\)"),
])
def test_refused_before_anything_starts(spec: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def score(:")
    (tmp_path / "raising.py").write_text("print('noise')\n{}['x']\n")
    (tmp_path / "exiting.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ConfigError, match=told) as refused:
        load(spec.replace("{tmp}", str(tmp_path)))
    assert refused.value.rule
    assert refused.value.fix


def test_the_check_is_made_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "helper_of_rewards.py").write_text("print('{\"noise\": 1}')\nVALUE = 1.0\n")
    (tmp_path / "rewards.py").write_text(
        "from helper_of_rewards import VALUE\ndef score(prompt, reference, response, *, by=VALUE):\n    return by\n")
    (tmp_path / "dying.py").write_text("import os\nos._exit(9)\n")
    check(f"{tmp_path}/rewards.py:score")
    assert "helper_of_rewards" not in sys.modules
    with pytest.raises(ConfigError, match="has no function scores"):
        check(f"{tmp_path}/rewards.py:scores")
    with pytest.raises(ConfigError, match="status 9"):
        check(f"{tmp_path}/dying.py:score")


@pytest.mark.parametrize(("keys", "told"), [
    ({"verifier": "custom"}, "without custom"), ({"verifier": "math", "custom": "a:b"}, "does not call it"),
    ({"verifier": "custom", "custom": "a:b", "scope": "boxed"}, "gets the whole response")])
def test_config_keys_that_mean_nothing_are_refused(keys: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RewardConfig(**keys)  # type: ignore[arg-type]
