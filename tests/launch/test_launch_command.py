"""`siri launch` as a user calls it, with stand-ins for Slurm's commands on PATH (tests/slurm has the real ones)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from siri_megatron.cli import main
from siri_megatron.launch.slurm import JobState
from siri_megatron.launch.spec import PACKAGE_ROOT

TINY = str(PACKAGE_ROOT / "configs" / "tiny.yaml")
LIVING = "JobId=1 JobName=tiny Restarts=0 JobState={} Reason=None RunTime=00:00:03 NodeList=n1 ExitCode=0:0"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that say what the files `scontrol` and `sbatch` have them do; sbatch counts its jobs from 1."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("sbatch", "scontrol", "scancel", "squeue"):
        (place / name).write_text(f'#!/bin/bash\necho {name} "$@" >>{place}/called\n. {place}/{name}.does\n')
        (place / name).chmod(0o755)
        (place / f"{name}.does").write_text("exit 0\n")
    does(place, "sbatch", f"echo . >>{place}/jobs; wc -l <{place}/jobs")
    does(place, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return place


def does(place: Path, command: str, text: str) -> None:
    (place / f"{command}.does").write_text(f"{text}\n")


def launch(*overrides: str) -> int:
    return main(["launch", "slurm", TINY, "launch.python=python3", *overrides])


def job(run: str = "tiny") -> dict[str, object]:
    return dict(json.loads(Path("runs", run, "launch", "job.json").read_text()))


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_run_that_has_a_job_gets_no_second_one(slurm: Path, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its job file would name the second only: nothing could cancel the first, and both would want the run."""
    assert launch() == 0
    does(slurm, "scontrol", f"echo '{LIVING.format(state)}'")
    assert launch() == 2
    said = capsys.readouterr().err
    assert f"runs/tiny has job 1: {state}" in said
    assert "siri launch cancel" in said
    assert job()["jobs"] == ["1"]
    does(slurm, "scontrol", f"echo '{LIVING.format('COMPLETED')}'")
    assert launch() == 0
    assert job()["jobs"] == ["2"]


def test_a_job_that_a_job_submitted_in_its_place_is_known(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a site forbids requeues: the first has ended, and only the second can be looked at and cancelled."""
    assert launch() == 0
    Path("runs/tiny/launch/resubmitted").write_text("Submitted batch job 5\n")
    living = LIVING.format("RUNNING").replace("JobId=1", "JobId=5")
    does(slurm, "scontrol", f"[[ $* == *5 ]] || exit 0; echo '{living}'")
    assert launch() == 2
    assert "runs/tiny has job 5: RUNNING" in capsys.readouterr().err
    assert main(["launch", "cancel", "tiny"]) == 0
    assert "scancel 1 5" in (slurm / "called").read_text()
    does(slurm, "scontrol", "exit 0")
    assert launch() == 0
    assert main(["launch", "status", "tiny"]) == 0
    assert "jobs 2: Slurm knows them no more" in capsys.readouterr().out


def test_what_was_submitted_of_a_chain_is_known(slurm: Path) -> None:
    """A site may allow two jobs a user."""
    does(slurm, "sbatch", f"echo . >>{slurm}/jobs; n=$(wc -l <{slurm}/jobs); ((n < 3)) || exit 1; echo $n")
    assert launch("launch.slurm.chain=4") == 3
    assert job()["jobs"] == ["1", "2"]


def test_a_controller_that_is_away_has_forgotten_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch() == 0
    assert main(["launch", "status", "tiny"]) == 0
    assert "Slurm knows them no more" in capsys.readouterr().out
    does(slurm, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert main(["launch", "status", "tiny"]) == 3
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_a_run_without_a_job_is_looked_at(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of `siri train` and `siri launch local`; Slurm is not asked, and what cannot be cancelled says how it ends."""
    run = Path("runs/tiny")
    (run / "logs").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "logs/learner-0.log").write_text("first\nlast\n")
    assert main(["launch", "status", "tiny"]) == 0
    assert "0 steps, no commit" in capsys.readouterr().out
    assert main(["launch", "logs", "tiny"]) == 0
    assert "processes: learner-0" in capsys.readouterr().out
    assert main(["launch", "logs", "tiny", "learner-0", "-n", "1"]) == 0
    assert "last" in capsys.readouterr().out.splitlines()
    assert main(["launch", "cancel", "tiny"]) == 2
    assert "Ctrl-C" in capsys.readouterr().err
    assert not (slurm / "called").exists()
    assert main(["launch", "status", "other"]) == 2


@pytest.mark.parametrize(("pattern", "files"), [("launch/%j.log", ["launch/1.log"]), ("%x-%j.out", ["tiny-1.out"])])
def test_the_log_is_found_where_the_config_has_it(slurm: Path, pattern: str, files: list[str],
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(f"launch.slurm.log={pattern}") == 0
    for file in files:
        Path("runs/tiny", file).write_text("first\nlast\n")
    assert main(["launch", "logs", "tiny", "-n", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "last" in said
    assert "first" not in said


def test_each_run_of_a_sweep_has_its_log(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("launch.slurm.sweep={seed: [3, 4]}") == 0
    for element in (0, 1):
        Path(f"runs/tiny/launch/1_{element}.log").write_text(f"of element {element}\n")
    for element, run in enumerate(("tiny-seed3", "tiny-seed4")):
        assert job(run)["jobs"] == ["1"]
        capsys.readouterr()
        assert main(["launch", "logs", run]) == 0
        assert f"of element {element}" in capsys.readouterr().out


def test_a_run_of_a_sweep_is_looked_at_and_cancelled_alone(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cancelling one run must not end the others."""
    assert launch("launch.slurm.sweep={seed: [3, 4]}") == 0
    said = LIVING.format("RUNNING") + " ArrayJobId=1 ArrayTaskId=1"
    does(slurm, "scontrol", f"[[ $* == *1_1 ]] || {{ echo Job $4 not found >&2; exit 1; }}; echo '{said}'")
    assert launch("name=tiny-seed4", "seed=4") == 2
    assert "runs/tiny-seed4 has job 1_1: RUNNING" in capsys.readouterr().err
    assert main(["launch", "cancel", "tiny-seed4"]) == 0
    assert "scancel 1_1\n" in (slurm / "called").read_text()
    assert launch("name=tiny-seed3", "seed=3") == 0, "its own element has ended"
    assert main(["launch", "cancel", "tiny"]) == 0
    assert "scancel 1\n" in (slurm / "called").read_text()


def test_a_path_with_spaces(slurm: Path) -> None:
    """sbatch reads its options as a shell would: unquoted, it refuses the script."""
    assert launch("runs_dir=my runs") == 0
    script = Path("my runs/tiny/launch/job.sh").read_text()
    assert f"#SBATCH '--output={Path.cwd()}/my runs/tiny/launch/%j.log'" in script


def test_ended() -> None:
    assert JobState("1", "TIMEOUT", "0:0", 0, "", "", "").ended
    assert not JobState("1", "REQUEUED", "0:0", 0, "", "", "").ended
