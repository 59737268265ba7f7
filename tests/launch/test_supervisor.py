"""The supervisor over real processes: every way a run can end, its verdict, and that nothing is left alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch_processes import Marked, command, fill, wait_for
from launch_run import Printer, plan
from own_ports import own_ports

from siri_megatron.files import read_json
from siri_megatron.launch import progress
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.stop import stop_requested
from siri_megatron.launch.supervisor import Supervisor
from siri_megatron.launch.verdict import Failure
from siri_megatron.paths import RunDir

RUN = str(Path(__file__).with_name("launch_run.py"))
SECONDS_TO_END = 60  # every way to stop a run ends all of its processes within this time, on a busy machine too


class Run:
    """A supervisor in a process of its own over stand-in children."""

    def __init__(self, marked: Marked, root: Path, *words: str, **env: str) -> None:
        self.marked, self.paths = marked, RunDir(root)
        port, other = own_ports(2)
        words = tuple(word.format(port=port, other=other, root=root) for word in words)
        self.roles = [spec.role for spec in plan(root, port, list(words)).processes if spec.argv]  # given: not its own
        self.process = marked.start(sys.executable, RUN, str(root), str(port), *words, env=env)

    def until(self, what: str) -> Run:
        conditions = {"fleet": lambda: self.paths.fleet.exists() and all(map(self.pids_of, self.roles)),
                      "a step": self.paths.metrics.exists,
                      "started": lambda: self.marked.named("stubborn") or self.marked.named("learner")}
        wait_for(lambda: conditions[what]() or self.process.poll() is not None, what)
        assert self.process.poll() is None, (self.process.communicate(), read_json(self.paths.result))
        return self

    def signal(self, number: int) -> Run:
        self.process.send_signal(number)
        return self

    def end(self) -> dict[str, Any]:
        """The verdict, once the supervisor has ended; nothing of it may be left then."""
        self.code = self.process.wait(SECONDS_TO_END)
        assert self.marked.living() == []
        assert not stop_requested(self.paths)
        return dict(json.loads(self.paths.result.read_text()))

    def pids_of(self, role: str) -> list[int]:
        """The process of a role, found through its log being the guard's output; empty before it is started."""
        log = os.path.realpath(self.paths.logs / f"{role}.log")
        return [pid for pid in self.marked.living() if "siri_megatron.launch.guard" not in command(pid)
                and os.path.realpath(f"/proc/{pid}/fd/1") == log and os.getsid(pid) == pid]

    def pid_of(self, role: str) -> int:
        wait_for(lambda: self.pids_of(role), f"{role} to be started")
        return self.pids_of(role)[0]


ENGINE = "engine-0=engine,{port}"
COLLECTOR = "collector=stubborn"
QUICK = ("learner-0=learner,{root},0,5,0.05", "learner-1=learner,{root},1,5,0.05")
LONG = ("learner-0=learner,{root},0,1000,0.1", "learner-1=learner,{root},1,1000,0.1")
STUCK = ("learner-0=learner,{root},0,1000,300", "learner-1=stubborn")


def test_success(marked: Marked, tmp_path: Path) -> None:
    result = Run(marked, tmp_path, ENGINE, COLLECTOR, *QUICK).end()
    assert (result["status"], result["step"], result["exit_code"], result["failures"]) == ("success", 5, 0, [])


def test_fleet_file_names_engine_epoch_and_pid_and_ignores_proxies(marked: Marked, tmp_path: Path) -> None:
    for epoch in (1, 2):
        run = Run(marked, tmp_path, ENGINE, COLLECTOR, *LONG, http_proxy="http://127.0.0.1:9", no_proxy="")
        wait_for(lambda: (read_json(run.paths.fleet) or {}).get("epoch") == epoch, f"fleet epoch {epoch}")  # noqa: B023
        fleet = json.loads(run.paths.fleet.read_text())
        assert (fleet["epoch"], fleet["model"], fleet["engines"][0]["index"]) == (epoch, "policy", 0)
        assert fleet["engines"][0]["pid"] == run.pid_of("engine-0")
        assert (run.paths.key.stat().st_mode & 0o777) == 0o600
        run.signal(signal.SIGTERM).end()


def test_killed_supervisor_leaves_no_process(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *STUCK).until("fleet")
    assert len(marked.named("stubborn")) == 2
    run.process.kill()
    run.process.wait(SECONDS_TO_END)
    wait_for(lambda: not marked.living(), "every process to end")


def test_killed_supervisor_and_killed_guard_leave_no_process(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, "collector=tree", *STUCK).until("fleet")
    guards = [pid for pid in marked.living() if {"tree", "siri_megatron.launch.guard"} <= set(command(pid))]
    run.process.kill()
    os.kill(guards[0], signal.SIGKILL)
    run.process.wait(SECONDS_TO_END)
    wait_for(lambda: not marked.living(), "every process to end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_commits_at_the_step_boundary_and_resume_goes_on(marked: Marked, tmp_path: Path, number: int) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *LONG).until("fleet").until("a step").signal(number)
    result = run.end()
    assert (run.code, result["status"]) == (130, "interrupted")
    assert result["committed"] == result["step"] > 0
    assert signal.Signals(number).name in result["reason"]
    steps = result["step"] + 3
    again = Run(marked, tmp_path, ENGINE, COLLECTOR, f"learner-0=learner,{tmp_path},0,{steps},0.01").end()
    assert (again["status"], again["step"]) == ("success", steps)


def test_learners_that_reach_no_boundary_get_the_grace_time_only(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *STUCK, "stop_grace_s=3").until("fleet").signal(signal.SIGINT)
    result = run.end()
    assert (result["status"], result["committed"]) == ("interrupted", None)
    assert "launch.stop_grace_s=3" in result["reason"]


def test_second_signal_ends_at_once(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *STUCK).until("fleet").signal(signal.SIGINT)
    wait_for(lambda: stop_requested(run.paths), "the first signal to be heeded")
    assert "second signal" in run.signal(signal.SIGINT).end()["reason"]


def test_signal_while_engines_load(marked: Marked, tmp_path: Path) -> None:
    result = Run(marked, tmp_path, "engine-0=stubborn", *STUCK).until("started").signal(signal.SIGINT).end()
    assert (result["status"], result["reason"]) == ("interrupted", "stopped by SIGINT before training began")


def test_a_warm_start_has_nothing_to_commit_and_ends_at_once(marked: Marked, tmp_path: Path) -> None:
    """Its learners look at no stop.json: the grace time would pass in vain, and there is nothing to resume."""
    result = Run(marked, tmp_path, "task=sft", *STUCK).until("started").signal(signal.SIGINT).end()
    assert (result["status"], result["reason"]) == ("interrupted", "stopped by SIGINT")


def test_who_hangs_while_a_stop_is_under_way_is_named(tmp_path: Path) -> None:
    supervisor = Supervisor(plan(tmp_path, 1, []), Printer(), RunLock(RunDir(tmp_path)))
    supervisor._stopping = "stopped by SIGTERM"
    hangs = Failure("learner-0", "main", "hangs: nothing of it has run for 6 s")
    supervisor._hanging = lambda limit_s: [hangs]  # type: ignore[method-assign]
    assert supervisor._failure([], ()).failures == (hangs,)


def test_signal_to_every_process_is_an_interruption_not_a_failure(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, "collector=sleep", "learner-0=sleep").until("fleet").signal(signal.SIGTERM)
    os.kill(run.pid_of("learner-0"), signal.SIGTERM)
    assert run.end()["status"] == "interrupted"


@pytest.mark.parametrize(("kind", "expected"), [
    ("siri", ["learner-1: learner.tp=3, heads=4", "rule: heads % tp == 0", "fix:  learner.tp=2"]),
    ("bug", ["learner-1: ValueError: boom at layer 3 (launch_children.py:"])])
def test_exception_in_a_rank(marked: Marked, tmp_path: Path, kind: str, expected: list[str]) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, LONG[0], "learner-1=raises,{root},learner-1," + kind)
    result = run.end()
    assert (run.code, result["status"]) == (3, "failed")
    assert all(text in result["reason"] for text in expected)
    assert "Traceback" not in result["reason"]
    assert "Traceback" in json.loads((run.paths.failures / "learner-1.json").read_text())["traceback"]


def test_engine_that_dies_at_start_tells_the_cause_without_a_wall(marked: Marked, tmp_path: Path) -> None:
    result = Run(marked, tmp_path, "engine-0=engine-dies", "engine-1=stubborn", COLLECTOR, *STUCK).end()
    assert result["status"] == "failed"
    assert result["reason"].splitlines()[:2] == ["engine-0: ended with status 1; its log ends:",
                                                 "    ValueError: No available memory for the cache blocks."]
    assert "Traceback" not in result["reason"]


def test_engine_that_is_never_healthy(marked: Marked, tmp_path: Path) -> None:
    result = Run(marked, tmp_path, "engine-0=stubborn", *STUCK, "start_timeout_s=6").end()
    assert result["status"] == "failed"
    assert "engine-0 not healthy after" in result["reason"]
    assert "engines.start_timeout_s=6" in result["reason"]


@pytest.mark.parametrize("role", ["engine-0", "collector", "learner-1"])
def test_killed_process_ends_the_run_and_is_named(marked: Marked, tmp_path: Path, role: str) -> None:
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *STUCK).until("fleet")
    os.kill(run.pid_of(role), signal.SIGKILL)
    result = run.end()
    assert result["status"] == "failed"
    assert result["reason"].startswith(f"{role}: was killed by SIGKILL")


@pytest.mark.parametrize("role", ["learner-0", "learner-1"])
def test_a_stopped_learner_ends_the_run_and_is_named(marked: Marked, tmp_path: Path, role: str) -> None:
    """It exists and does nothing; no peer waits for it in this run, so that only its pulse tells."""
    run = Run(marked, tmp_path, ENGINE, COLLECTOR, *LONG, "silence_s=5").until("a step")
    wait_for((run.paths.pulses / role).exists, "its first pulse")
    os.kill(run.pid_of(role), signal.SIGSTOP)
    result = run.end()
    assert (run.code, result["status"]) == (3, "failed")
    assert result["reason"].startswith(f"{role}: hangs: nothing of it has run for ")
    assert "learner.heartbeat_timeout_s=5" in result["reason"]


def test_one_that_never_shows_that_it_lives_ends_the_run_and_is_named(marked: Marked, tmp_path: Path) -> None:
    """Stopped before its first pulse, stuck in an import: the way there may take ten times as long."""
    result = Run(marked, tmp_path, "engine-0=engine,{port}", "learner-0=stubborn", "silence_s=0.4").end()
    assert result["reason"].startswith("learner-0: hangs: nothing of it has run for 4 s")
    assert "learner.heartbeat_timeout_s=0.4 s, and within 10 times that at its start" in result["reason"]


def test_a_stop_on_a_full_disk_is_orderly(marked: Marked, disk: Callable[..., Path]) -> None:
    """Nobody can be told to commit; the verdict is on the terminal, and nothing is left running."""
    root = disk("size=1m")
    run = Run(marked, root, ENGINE, COLLECTOR, *STUCK).until("fleet")
    taken = fill(root)
    run.signal(signal.SIGTERM)
    said, traceback = run.process.communicate(timeout=SECONDS_TO_END)
    assert (run.process.returncode, traceback) == (130, "")
    assert "stopped by SIGTERM; nobody could be told to commit" in said
    assert "No space left on device; 0 bytes free" in said
    assert marked.living() == []
    taken.unlink()
    assert Run(marked, root, ENGINE, *QUICK).end()["status"] == "success"


def test_a_stop_on_a_disk_that_became_read_only_is_orderly(marked: Marked, disk: Callable[..., Path]) -> None:
    root = disk("size=1m")
    run = Run(marked, root, ENGINE, COLLECTOR, *STUCK).until("fleet")
    for how in ("bind", "remount,ro,bind"):
        subprocess.run(["mount", "-o", how, str(root), str(root)], check=True)
    run.signal(signal.SIGTERM)
    said, traceback = run.process.communicate(timeout=SECONDS_TO_END)
    assert (run.process.returncode, traceback) == (130, "")
    assert "stopped by SIGTERM; nobody could be told to commit" in said
    assert f"and: {run.paths.result}: Read-only file system" in said
    assert said.count("disk: events are lost") == 1
    assert marked.living() == []


def test_a_stop_after_which_the_disk_fills_up_stays_a_stop(marked: Marked, disk: Callable[..., Path]) -> None:
    """The supervisor cannot write which engines are left: the learners are not waited for, and nobody failed."""
    root = disk("size=1m")
    run = Run(marked, root, ENGINE, "engine-1=engine,{other}", COLLECTOR, *STUCK).until("fleet").signal(signal.SIGTERM)
    wait_for(lambda: stop_requested(run.paths), "the signal to be heeded")
    fill(root)
    os.kill(run.pid_of("engine-1"), signal.SIGKILL)
    said, traceback = run.process.communicate(timeout=SECONDS_TO_END)
    assert (run.process.returncode, traceback) == (130, "")
    assert f"stopped by SIGTERM, and then: {root}: No space left on device" in said
    assert "make room" in said
    assert marked.living() == []


def test_a_verdict_that_cannot_be_written_is_told(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, *STUCK).until("fleet")
    run.paths.result.mkdir()  # in the way
    os.kill(run.pid_of("learner-0"), signal.SIGKILL)
    said, traceback = run.process.communicate(timeout=SECONDS_TO_END)
    assert (run.process.returncode, traceback) == (3, "")
    assert "learner-0: was killed by SIGKILL" in said
    assert f"and: {run.paths.result}: Is a directory" in said


def test_a_run_that_fills_its_disk_says_so(marked: Marked, disk: Callable[..., Path]) -> None:
    root = disk("size=1m")
    run = Run(marked, root, ENGINE, COLLECTOR, *LONG).until("a step")
    fill(root)
    said, traceback = run.process.communicate(timeout=SECONDS_TO_END)
    assert (run.process.returncode, traceback) == (3, "")
    assert f"{root} has 0 bytes free" in said or f"{root}: No space left on device" in said
    assert "make room" in said
    assert marked.living() == []


def test_weights_of_a_killed_push_do_not_stay_in_memory(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, *LONG).until("a step")
    for file in run.paths.shared_weights:
        file.write_bytes(b"half")
    os.kill(run.pid_of("learner-0"), signal.SIGKILL)
    assert run.end()["status"] == "failed"
    assert not any(file.exists() for file in run.paths.shared_weights)


def test_weights_of_a_push_that_nobody_survived_go_at_the_next_start(marked: Marked, tmp_path: Path) -> None:
    shared = RunDir(tmp_path).shared_weights[0]
    shared.write_bytes(b"half")
    try:
        assert Run(marked, tmp_path, ENGINE, *QUICK).end()["status"] == "success"
        assert not shared.exists()
    finally:
        shared.unlink(missing_ok=True)


def test_what_engines_held_while_they_loaded_goes_at_the_next_start(marked: Marked, tmp_path: Path) -> None:
    """All are killed at once, by a scheduler's cgroup say, before any engine has answered."""
    run = Run(marked, tmp_path, "engine-0=engine-loading", *STUCK)
    log, noted = tmp_path / "logs" / "engine-0.log", run.paths.shared()
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), "the engine's words")
    semaphore, sockets = map(Path, log.read_text().split()[:2])
    wait_for(lambda: noted.exists() and semaphore.name in noted.read_text(), "the supervisor's note")
    marked.kill()
    run.process.wait(SECONDS_TO_END)
    assert (semaphore.exists(), sockets.exists()) == (True, True)
    assert Run(marked, tmp_path, *QUICK).end()["status"] == "success"
    assert (semaphore.exists(), sockets.exists()) == (False, False)


def test_killed_guard_ends_the_run_with_its_whole_tree(marked: Marked, tmp_path: Path) -> None:
    run = Run(marked, tmp_path, ENGINE, "collector=tree", *STUCK).until("fleet")
    guards = [pid for pid in marked.living() if {"tree", "siri_megatron.launch.guard"} <= set(command(pid))]
    os.kill(guards[0], signal.SIGKILL)
    assert run.end()["reason"].startswith("collector: its guard was killed by SIGKILL")


def test_service_may_not_end_even_with_zero(marked: Marked, tmp_path: Path) -> None:
    result = Run(marked, tmp_path, ENGINE, f"collector=learner,{tmp_path}/other,9,1,0.1", *STUCK).end()
    assert result["reason"].startswith("collector: ended before the run did")


def test_second_supervisor_is_refused_by_name_and_harms_nothing(marked: Marked, tmp_path: Path) -> None:
    first = Run(marked, tmp_path, ENGINE, COLLECTOR, *LONG).until("fleet").until("a step")
    second = Run(Marked(), tmp_path, ENGINE, COLLECTOR, *LONG)
    assert second.process.wait(SECONDS_TO_END) == 3
    assert f"supervisor pid {first.process.pid} is running" in second.process.communicate()[1]
    assert first.process.poll() is None
    assert first.signal(signal.SIGTERM).end()["status"] == "interrupted"


def test_next_supervisor_waits_for_the_dying_processes_of_a_killed_one(marked: Marked, tmp_path: Path) -> None:
    first = Run(marked, tmp_path, ENGINE, COLLECTOR, *STUCK).until("fleet")
    first.process.kill()
    first.process.wait(SECONDS_TO_END)
    assert marked.living()  # they ignore SIGTERM, so the guards are still at it
    other = Marked()
    second = Run(other, tmp_path, *QUICK)
    wait_for(lambda: other.named("learner") or second.process.poll() is not None, "the second run to start")
    assert marked.living() == []
    assert second.end()["status"] == "success"


def test_progress_is_read_from_the_run_directory(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    assert (progress.steps_done(paths), progress.last_commit(paths), progress.holds_run(paths)) == (0, None, "")
    paths.metrics.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    for step in (1, 2):
        paths.checkpoint(step).mkdir(parents=True)
    (paths.checkpoint(1) / "commit.json").write_text('{"step": 1}')  # step 2 was being written: it does not exist
    assert (progress.steps_done(paths), progress.last_commit(paths)) == (2, 1)
    assert progress.holds_run(paths) == "2 steps, a commit of step 1"
    paths.metrics.write_text('{"step": 0}\n{"cap": 48}\n{"step": null}\n')
    assert progress.steps_done(paths) == 1


def test_supervisor_needs_no_heavy_package() -> None:
    script = "import sys, siri_megatron.launch.commands; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "vllm", "megatron", "transformers", "pyarrow", "numpy"}.isdisjoint(names)
