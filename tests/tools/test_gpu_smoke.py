"""The GPU smoke script: what it plans can be run on two GPUs, its runner judges real processes, its judges see faults.

No GPU has run it: the plans are held against the product's own checks for a machine with GPUs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tool_modules import tool

from siri_megatron.cli import parse
from siri_megatron.config import load, save
from siri_megatron.errors import ConfigError
from siri_megatron.launch.gpus import check_gpus
from siri_megatron.launch.preflight import check_device
from siri_megatron.launch.spec import Machine
from siri_megatron.learner.layout import check_layout
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

checks, smoke = tool("gpu_checks"), tool("gpu_smoke")
PLANNED = checks.checks(checks.Setting(Path("/place"), 2))
TRAINING = [check for check in PLANNED if "train" in check.command and "--resume" not in check.command]
FINE = {"mismatch_mean_abs": 1e-2, "mismatch_max_abs": 0.1, "probe_mean_abs": 1e-2, "grad_norm": 2.0, "push_s": 0.1,
        "generation_tokens_per_s": 5e3}


def machine(gpus: int) -> Machine:
    return Machine(cores=(0, 1), device="cuda", gpus=tuple(map(str, range(gpus))))


# --- the plan


@pytest.mark.parametrize("check", TRAINING, ids=lambda check: check.name)
def test_two_gpus_can_run_it_and_fewer_than_it_says_cannot(check: Any) -> None:
    args = parse(list(check.command[check.command.index("train"):]))
    config = load(args.config, [text for text in args.overrides if not text.startswith("model.path=")])
    task = "replay" if args.replay else "rollout-only" if args.rollout_only else "train"
    check_device(config, machine(2))
    check_gpus(config, task, machine(check.gpus))
    check_layout(checks.WIDE if check.name == "memory" else tiny(), config.learner, context=160)
    with pytest.raises(ConfigError):
        check_gpus(config, task, machine(check.gpus - 1))


def tiny() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checks.REPO / "configs/models/tiny-digits/config.json").read_text())
    return found


def test_what_is_needed_comes_first() -> None:
    names = [check.name for check in PLANNED]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(check.name) for check in PLANNED for need in check.after)


def test_every_path_that_no_cpu_runs_is_planned() -> None:
    """docs/gpu.md, "What to run first"; the names are what the report shows."""
    text = " ".join(word for check in PLANNED for word in check.command)
    wanted = ("doctor", "model.dtype=bfloat16", "batching.mode=bucketed", "learner.tp=2", "learner.pp=2",
              "learner.cp=2", "learner.distributed_optimizer=true", "--resume", "--rollout-only", "engines.tp=2",
              "push.backend=nccl", "push.backend=shm", "push.probe_every=1", "convert megatron-to-hf",
              "launch.placement=turns")
    assert [one for one in wanted if one not in text] == []


def test_the_page_tells_of_every_check() -> None:
    page = (checks.REPO / "docs" / "gpu.md").read_text()
    told = page[page.index("## The smoke script"):]
    assert [check.name for check in PLANNED if check.name.removeprefix("learner ") not in told] == []


def test_a_rehearsal_asks_for_nothing_that_a_cpu_lacks() -> None:
    for check in checks.checks(checks.Setting(Path("/place"), 0, rehearsal=True)):
        if check.rehearsed and "train" in check.command and "--resume" not in check.command:
            check_device(load(checks.TINY, [word for word in check.command if "=" in word]), Machine(cores=(0, 1)))


# --- the runner, with real processes


def check(name: str, code: str, *, gpus: int = 0, judge: Callable[[Any], str] = lambda _: "fine", limit_s: float = 20.0,
          after: tuple[str, ...] = (), rehearsed: bool = True) -> Any:
    return checks.Check(name, gpus, (sys.executable, "-c", code), judge, limit_s, after, rehearsed)


def verdicts(tmp_path: Path, *listed: Any, gpus: int = 0, rehearsal: bool = False, only: tuple[str, ...] = ()) -> Any:
    found = smoke.run_all(listed, checks.Setting(tmp_path, gpus, rehearsal), only)
    return found, {verdict.name: (verdict.status, verdict.found) for verdict in found}


def wrong(_: Any) -> str:
    raise checks.Wrong("a norm of 7")


def test_pass_fail_and_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, by_name = verdicts(
        tmp_path, check("good", "print(3)", judge=lambda done: f"printed {done.log.read_text().strip()}"),
        check("bad", "import sys; print('siri: refused'); print('  rule: r'); sys.exit(2)"),
        check("off", "", judge=wrong),
        check("run", "print('replay failed after 0 of 2 steps, 6 s in all'); print('learner-0: X'); "
                     "print('resume: y'); raise SystemExit(3)"))
    assert by_name["good"] == ("pass", "printed 3")
    assert by_name["bad"][0] == by_name["off"][0] == "fail"
    assert by_name["bad"][1].startswith("ended with 2: siri: refused")
    assert by_name["off"][1].startswith("a norm of 7")
    assert by_name["run"][1].startswith("ended with 3: learner-0: X")
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["pass", "fail", "fail", "fail"]
    assert smoke.exit_status(found) == 1


@pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN); "])
def test_what_hangs_is_ended_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: str) -> None:
    monkeypatch.setattr(smoke, "END_S", 1.0)
    code = f"import os, signal, time; {stubborn}print(os.getpid(), flush=True); time.sleep(600)"
    _, by_name = verdicts(tmp_path, check("hangs", code, limit_s=8.0))
    pid = int((tmp_path / "hangs.log").read_text())
    assert by_name["hangs"][0] == "fail"
    assert by_name["hangs"][1].startswith(f"no end within 8 s; last it said {pid}")
    assert not Path(f"/proc/{pid}").exists()


def test_without_gpus_what_needs_them_is_skipped_with_its_reason(tmp_path: Path) -> None:
    listed = (check("any", ""), check("one", "raise SystemExit(1)", gpus=1), check("after it", "", after=("one",)))
    found, by_name = verdicts(tmp_path, *listed)
    assert by_name == {"any": ("pass", "fine"), "one": ("skip", "needs 1 GPU, this machine has 0"),
                       "after it": ("skip", "needs one, which did not pass")}
    assert smoke.exit_status(found) == 77
    assert smoke.exit_status([verdict for verdict in found if verdict.name == "any"]) == 0


def test_a_rehearsal_runs_what_the_cpu_can(tmp_path: Path) -> None:
    code = "import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''"
    _, by_name = verdicts(tmp_path, check("two", code, gpus=2), check("card", "", gpus=1, rehearsed=False),
                          rehearsal=True)
    assert by_name == {"two": ("pass", "fine"), "card": ("skip", "needs 1 GPU, a rehearsal has none")}


def test_only_brings_what_it_needs(tmp_path: Path) -> None:
    listed = (check("a", ""), check("b", "", after=("a",)), check("c", ""))
    assert set(verdicts(tmp_path, *listed, only=("b",))[1]) == {"a", "b"}


def test_the_list_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert smoke.main(["--list", "--dir", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.count("\n") == len(PLANNED)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit, match="no check learner tp9"):
        smoke.main(["--only", "learner tp9"])


# --- the judges


def written(tmp_path: Path, name: str = "run", **changed: float) -> RunDir:
    """A run's metrics, with something changed in its last step."""
    run = RunDir(tmp_path / name)
    run.root.mkdir(exist_ok=True)
    for step in (0, 1):
        jsonl.append(run.metrics, {"step": step, **FINE, **(changed if step else {})})
    return run


def test_metrics_of_a_good_run(tmp_path: Path) -> None:
    run = written(tmp_path)
    assert checks.parity(run, 0.03).startswith("from transformers 1.0e-02")
    assert checks.agreed(run, run) == "gradient norm 2, run has 2"
    assert checks.agreed_end(run, run).startswith("step 1 once more: gradient norm 2")
    assert "engine from learner 1.0e-02 after a push of 0.10 s" in checks.whole(run, 0.03)
    assert checks.generated(run) == "two steps sampled, 5,000, 5,000 tokens/s"


@pytest.mark.parametrize("value", [0.2, float("nan")])
def test_a_fault_in_the_metrics_is_seen(tmp_path: Path, value: float) -> None:
    """The bound of bfloat16; NaN is no pass."""
    fine, far = written(tmp_path, "fine"), RunDir(tmp_path / "far")
    far.root.mkdir()
    for step in (0, 1):
        jsonl.append(far.metrics, {"step": step, **FINE, "mismatch_mean_abs": value, "grad_norm": value})
    for judge in (lambda: checks.parity(far, 0.03), lambda: checks.agreed(far, fine), lambda: checks.whole(far, 0.03),
                  lambda: checks.agreed_end(far, fine)):
        with pytest.raises(checks.Wrong):
            judge()


def test_unfused_attention_is_seen(tmp_path: Path) -> None:
    run = written(tmp_path)
    run.logs.mkdir()
    log = run.logs / "learner-0.log"
    log.write_text("megatron-core's own lines\n")
    assert checks.attention(run) == []
    log.write_text("[INFO | DotProductAttention]: Running with FusedAttention backend (sub-backend 1)\n")
    assert checks.attention(run) == ["FusedAttention"]
    log.write_text("Disabling FusedAttention: CUDNN_STATUS\nRunning with UnfusedDotProductAttention backend\n")
    with pytest.raises(checks.Wrong, match=r"unfused: Disabling FusedAttention: CUDNN_STATUS"):
        checks.attention(run)


def test_stale_weights_after_the_push_are_seen(tmp_path: Path) -> None:
    with pytest.raises(checks.Wrong, match="probe_mean_abs of step 1"):
        checks.whole(written(tmp_path, probe_mean_abs=0.5), 0.03)


def test_a_run_that_ended_early_is_seen(tmp_path: Path) -> None:
    jsonl.append(RunDir(tmp_path).metrics, {"step": 0, **FINE})
    with pytest.raises(checks.Wrong, match="not 0 and 1"):
        checks.generated(RunDir(tmp_path))


def test_a_broken_off_copy_lacks_its_last_commit(tmp_path: Path) -> None:
    run, other = RunDir(tmp_path / "run"), RunDir(tmp_path / "other")
    for path in (run.checkpoint(1) / "commit.json", run.checkpoint(2) / "commit.json", run.result):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    checks.break_off(run, other)
    assert os.listdir(other.checkpoints) == ["step-000001"]
    assert not other.result.exists()
    assert run.checkpoint(2).exists()


def test_memory_is_held_against_the_plan(tmp_path: Path) -> None:
    setting = checks.Setting(tmp_path, 2)
    memory = next(check for check in checks.checks(setting) if check.name == "memory")
    save(load(checks.TINY, [word for word in memory.command if "=" in word]), setting.run_dir("memory").config)
    predicted = float(said.split()[-2]) if (said := ask(setting, 10**9, fails=True)) else 0.0
    assert 5 < predicted < 30, "GB: it fills some of a GPU, and any holds it"
    assert ask(setting, int(predicted * 0.9e9)).startswith("measured")
    ask(setting, int(predicted * 1.3e9), fails=True)


def ask(setting: Any, peak: int, *, fails: bool = False) -> str:
    if not fails:
        return str(checks.remembered(setting, peak))
    with pytest.raises(checks.Wrong) as caught:
        checks.remembered(setting, peak)
    return str(caught.value)


@pytest.mark.engine
@pytest.mark.soak
def test_the_rehearsal_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that a CPU can run, from end to end: what is left for a GPU is the GPU."""
    assert smoke.main(["--rehearse", "--dir", str(tmp_path)]) == 77, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines[:-1] if not line.startswith(("pass", "skip"))] == []
    assert sorted(line.split()[1] for line in lines if line.startswith("skip")) == ["memory", "wide"]
