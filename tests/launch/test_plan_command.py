"""`siri plan` as a user calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from launch_models import CONFIG
from made_run import write_run

from siri_megatron import cli
from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.launch import commands
from siri_megatron.launch.calibrate import fingerprint, short_run

REPO = Path(__file__).resolve().parents[2]
BIG = str(REPO / "configs" / "r1-distill-1.5b.yaml")
SHIPPED = ("r1-distill-1.5b", "r1-distill-7b", "llama-70b-plan")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A config beside a model directory that holds nothing but config.json: what a login node has."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    configs.save(configs.validate({
        "name": "run", "runs_dir": str(tmp_path / "runs"), "model": {"path": str(tmp_path / "model")},
        "budget": {"l_min": 16, "l_max": 64, "cycle_steps": 8, "cycles": 1}, "data": {"max_prompt_tokens": 32},
        "rollout": {"prompts_per_step": 8, "samples_per_prompt": 4, "budget_grid": [16, 64]},
        "evaluation": {"problems": 8, "budgets": [64]}, "optimizer": {"lr": 1e-4}}, "test"), tmp_path / "config.yaml")
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(capsys, *arguments, "--json"))
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert "  rule: " in err
    assert "  fix:  " in err
    return err


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_tables(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    lines = squeezed(plan(capsys, str(home / "config.yaml"), "learner.pp=2"))
    assert lines[0].startswith("run: 16.8 k parameters, float32, on nominal CPU cores, ")
    assert lines[1] == "learners 2: tp1 pp2 dp1; engines 2, 256 sequences each"
    assert lines[2] == "A step, by cap"
    heads = " ".join(lines[3:5])
    assert "capacity batches each fill GB ation ing bubble ~step side" in heads
    caps = [line.split()[0] for line in lines if line.endswith(("engines", "learners")) and line[0].isdigit()]
    assert (caps[0], caps[-1]) == ("16", "64")
    phases = [line.split()[:3] for line in lines if line.startswith("iter")]
    assert phases == [["iter1-compressed", "4", "57→16"], ["iter1-expanded", "4", "23→64"]]
    assert any(line.startswith("run ~") and "machine-hours; each cycle ~" in line for line in lines)
    assert any("nominal rates of a CPU core" in line for line in lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_fit_and_are_marked_as_modelled(capsys: pytest.CaptureFixture[str], name: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    found = plan_json(capsys, f"configs/{name}.yaml")
    assert found["misfits"] == []
    assert found["modelled"] == {"seconds": True, "memory": True, "lengths": True}
    assert found["run"]["steps"] == 1920
    assert found["machine"]["paid_for"] == {"r1-distill-1.5b": 8, "r1-distill-7b": 16, "llama-70b-plan": 128}[name]
    text = plan(capsys, f"configs/{name}.yaml")
    assert "does not fit" not in text
    assert all(mark in text for mark in ("~learner", "~gener-", "~GPU-", "data-sheet rates x assumed efficiencies"))
    assert "…" not in text


def test_json_is_complete(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    found = plan_json(capsys, str(home / "config.yaml"), "--compare", "pp=2", "--compare", "tp=2,engines=1")
    assert set(found) == {"format", "name", "model", "machine", "layout", "engines", "lengths", "modelled", "caps",
                          "phases", "cycles", "run", "misfits", "proposal", "split", "compared"}
    assert [run["layout"]["pp"] for run in found["compared"]] == [2, 1]
    assert [run["engines"]["count"] for run in found["compared"]] == [2, 1]
    assert set(found["phases"][0]) == {
        "tag", "cycle", "phase", "first_step", "last_step", "first_cap", "last_cap", "mean_cap", "tokens",
        "train_tokens", "generation_s", "verification_s", "training_s", "push_s", "overhead_s", "step_s", "commit_s",
        "export_s", "evaluation_s", "seconds", "gpu_hours", "micro_batches", "micro_batch_tokens", "bubble",
        "learner_bytes", "bottleneck", "steps"}
    assert {"cap", "widths", "capacity", "fill", "imbalance", "rounds", "truncated", "bottleneck", "memory"} <= set(
        found["caps"][0])


def test_compare(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    lines = squeezed(plan(capsys, str(home / "config.yaml"), "--compare", "pp=2", "--compare", "tp=2,dp=2"))
    rows = {line.rsplit(" ", 3)[0]: line.rsplit(" ", 3)[1:] for line in lines}
    assert rows["learner.tp"] == ["1", "1", "2"]
    assert rows["learner.pp"] == ["1", "2", "1"]
    assert rows["learner.dp"] == ["1", "1", "2"]
    assert rows["fits"] == ["yes"] * 3


def test_misfit_is_named_and_mended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    wanted = ("configs/r1-distill-7b.yaml", "learner.tp=1", "learner.sequence_parallel=false", "learner.dp=1",
              "learner.overlap=false")
    lines = squeezed(plan(capsys, *wanted))
    assert any(line.startswith("does not fit: a learner rank of stage 0 takes ") for line in lines)
    [fix] = [line.removeprefix("nearest that fits: ") for line in lines if line.startswith("nearest that fits: ")]
    mended = plan_json(capsys, *wanted, *fix.split())
    assert (mended["misfits"], mended["proposal"]) == ([], None)
    assert plan_json(capsys, *wanted)["proposal"] == fix.split()


REFUSED = [
    (["learner.tp=3"], ["learner.tp=3", "num_attention_heads=4", "nearest layout"]),
    (["--compare", "pp=7"], ["learner.pp=7", "num_hidden_layers=2"]),
    (["--compare", "pp"], ["'pp' is no key=value"]),
    (["--gpu", "b9000"], ["--gpu b9000", "a100, h100, h200"]),
    (["--lengths", "nix"], ["--lengths nix", "lognormal:MEDIAN"]),
    (["--calibration", "gone.json"], ["gone.json does not exist"]),
    (["--calibrate-from", "gone"], ["gone is no run directory"]),
    (["batching.tokens_per_micro_batch=80"], ["tokens_per_micro_batch=80", "96 or more"]),
    (["engines.extra_args=[-tp,'2']", "--gpu", "h100"], ["extra_args has -tp", "engines.tp"]),
    (["model.path=nowhere"], ["nowhere has no config.json"]),
    (["budget.l_max=4096"], ["max_position_embeddings=256"]),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_refusals(capsys: pytest.CaptureFixture[str], home: Path, arguments: list[str], expected: list[str]) -> None:
    error = refused(capsys, str(home / "config.yaml"), *arguments)
    assert [text for text in expected if text not in error] == []


@pytest.mark.parametrize("content", [[10, 20, 30], {"quantiles": [9.5], "prompt_tokens": 4}])
def test_lengths_from_a_file(capsys: pytest.CaptureFixture[str], home: Path, content: object) -> None:
    (home / "lengths.json").write_text(json.dumps(content))
    found = plan_json(capsys, str(home / "config.yaml"), "--lengths", str(home / "lengths.json"))
    assert found["lengths"]["measured"] is True
    assert found["caps"][-1]["mean_tokens"] == pytest.approx(20 if isinstance(content, list) else 10, abs=0.5)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '["a"]', "[-1]", '{"quantiles": 3}'])
def test_files_without_lengths(capsys: pytest.CaptureFixture[str], home: Path, content: str) -> None:
    (home / "lengths.json").write_text(content)
    refused(capsys, str(home / "config.yaml"), "--lengths", str(home / "lengths.json"))


def test_more_gpus_cost_more_hours_where_they_wait(capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    one, two = (plan_json(capsys, BIG, "--nodes", nodes)["run"] for nodes in ("1", "2"))
    assert two["seconds"] == one["seconds"]
    assert two["gpu_hours"] == pytest.approx(2 * one["gpu_hours"])


def test_calibration_is_written_read_again_and_only_for_this_machine(capsys: pytest.CaptureFixture[str],
                                                                     home: Path) -> None:
    nominal = plan_json(capsys, str(home / "config.yaml"))
    fresh = plan_json(capsys, str(home / "config.yaml"), "--calibrate-from", str(write_run(home / "config.yaml")))
    assert fresh["machine"]["rates"]["origin"] == "calibrated"
    assert (fresh["modelled"]["seconds"], fresh["lengths"]["measured"], fresh["lengths"]["kept_groups"]) == (
        False, True, [[16, 1.0], [32, 1.0], [48, 1.0], [64, 1.0]])
    file = home / "runs" / "calibration.json"
    assert json.loads(file.read_text())["machine"] == fingerprint()
    again = plan_json(capsys, str(home / "config.yaml"))
    assert again["phases"] == fresh["phases"]
    text = plan(capsys, str(home / "config.yaml"))
    assert "~" not in text
    assert "seconds: work x rates calibrated on" in text
    assert "extrapolated" in plan(capsys, str(home / "config.yaml"), "learner.pp=2")

    other = json.loads(file.read_text())
    other["machine"]["cpu"] = "another"
    file.write_text(json.dumps(other))
    assert plan_json(capsys, str(home / "config.yaml"))["phases"] == nominal["phases"]
    named = plan_json(capsys, str(home / "config.yaml"), "--calibration", str(file))
    assert named["phases"] == fresh["phases"]


def test_run_twice_as_slow_is_planned_twice_as_slow(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    runs = [write_run(home / "config.yaml", f"run-{slow:g}", slow=slow) for slow in (1.0, 2.0)]
    plans = [plan_json(capsys, str(home / "config.yaml"), "--calibrate-from", str(run), "--calibration",
                       str(home / "calibration.json")) for run in runs]
    parts = [[phase["generation_s"] + phase["training_s"] for phase in plan["phases"]] for plan in plans]
    assert parts[1] == pytest.approx([2 * part for part in parts[0]], rel=0.02)


SCHEDULES = {"cosine": [], "constant": ["budget.schedule=constant", "budget.l_min=64"],
             "held": ["budget.hold_steps=2", "budget.compression_steps=3", "budget.ranges=[[16, 64]]"],
             "staged": ["budget.schedule=staged", "budget.stages=[[3, 64], [2, 16]]", "budget.cycle_steps=null",
                        "budget.cycles=null"],
             "closed": ["budget.schedule=closed"]}


@pytest.mark.parametrize("arguments", SCHEDULES.values(), ids=SCHEDULES)
def test_calibration_run_is_short_whatever_the_schedule(home: Path, arguments: list[str]) -> None:
    config = configs.load(home / "config.yaml", arguments)
    short = configs.load(home / "config.yaml", [*arguments, *short_run(config)])
    caps = [64, 40, 16] if config.budget.l_min < 64 else [64]
    assert short.budget.stages == tuple((15 // len(caps), cap) for cap in caps)
    assert (short.name, short.budget.steps) == ("run-calibration", 15)
    kept = ("model", "learner", "engines", "rollout", "batching", "algorithm", "optimizer", "data", "reward")
    assert [getattr(short, name) for name in kept] == [getattr(config, name) for name in kept]


def test_calibrate_trains_a_short_run_and_reads_it(capsys: pytest.CaptureFixture[str], home: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(config: RunConfig, task: str, args: Namespace, *_: Any) -> int:
        started.append((config.name, task, args.fresh))
        write_run(home / "config.yaml", config.name)
        return 0

    started: list[tuple[str, str, bool]] = []
    monkeypatch.setattr(commands, "_train", trained)
    assert plan_json(capsys, str(home / "config.yaml"), "--calibrate")["lengths"]["measured"]
    assert started == [("run-calibration", "train", True)]
    assert (home / "runs" / "calibration.json").is_file()


def test_lengths_of_a_run(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    found = plan_json(capsys, str(home / "config.yaml"), "--lengths", str(write_run(home / "config.yaml")))
    assert (found["lengths"]["measured"], found["lengths"]["prompt_tokens"]) == (True, 8.0)


def test_help_imports_nothing_heavy() -> None:
    script = ("import sys; from siri_megatron import cli\ntry:\n    cli.main(['plan', '--help'])\n"
              "except SystemExit:\n    print('MODULES', *sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=True)
    text, _, modules = done.stdout.partition("MODULES")
    assert set(modules.split()) & {"numpy", "pydantic", "rich", "yaml", "siri_megatron.config"} == set()
    assert "--gpus-per-node M" in text


def test_login_node_needs_neither_torch_nor_weights(home: Path) -> None:
    script = ("import sys; from siri_megatron import cli; "
              f"status = cli.main(['plan', {str(home / 'config.yaml')!r}]); "
              "print('MODULES', *{name.partition('.')[0] for name in sys.modules}); sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=True)
    modules = set(done.stdout.rpartition("MODULES")[2].split())
    assert modules & {"torch", "megatron", "vllm", "transformers", "pyarrow", "datasets", "aiohttp"} == set()
    assert {"numpy", "rich"} <= modules
    shutil.rmtree(home / "model")
    assert cli.main(["plan", str(home / "config.yaml")]) == 2
