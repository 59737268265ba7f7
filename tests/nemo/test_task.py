"""The bash that nemo-run starts: one command, what it waits for, what bash and shellcheck say of it. No nemo-run."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from siri_megatron import config as configs
from siri_megatron.launch.job import Job, Place, make_job
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.nemo.task import Task, local_text, slurm_setup, slurm_text

TWO = ("launch.nodes=2", "push.backend=gloo")
ODD = (*TWO, "launch.env={NCCL_DEBUG: INFO, X: \"a 'b'\"}", "launch.interface=lo", "launch.slurm.setup=[module load x]")


def job(*overrides: str, directory: Path = Path("/there"), python: str = "python") -> Job:
    config = configs.load(PACKAGE_ROOT / "configs" / "tiny.yaml", list(overrides))
    return make_job(config, Place(directory, python))


def command_of(text: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith("command=("))
    return shlex.split(line.removeprefix("command=(").removesuffix(")"))


def environment_of(text: str) -> dict[str, str]:
    exports = [line for line in text.splitlines() if line.startswith("export ")]
    return dict(shlex.split(line)[1].split("=", 1) for line in exports)


@pytest.mark.parametrize("overrides", [(), TWO, ODD])
def test_one_command(overrides: tuple[str, ...]) -> None:
    task = Task("tiny", job(*overrides))
    for text in (slurm_text(task), local_text(task, 5000, Path("/stamps"))):
        assert command_of(text) == list(task.job.argv)
        assert environment_of(text) == dict(task.job.env)


@pytest.mark.parametrize("overrides", [(), TWO, ODD])
def test_bash_and_shellcheck_find_nothing(overrides: tuple[str, ...], tmp_path: Path) -> None:
    task = Task("tiny", job(*overrides), needs=("before",))
    other = dataclasses.replace(task, argv=("python", "-c", "print('a b')"))
    texts = [text for one in (task, other) for text in (
        slurm_text(one), local_text(one, 5000, Path("/stamps")), slurm_setup(one) + "\nsrun true\n")]
    for number, text in enumerate(texts):
        script = tmp_path / f"{number}.sh"
        script.write_text(f"#!/usr/bin/env bash\n{text}")
        subprocess.run(["bash", "-n", str(script)], check=True)
        if shutil.which("shellcheck"):
            done = subprocess.run(["shellcheck", "-S", "warning", str(script)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def run(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=30, check=False)


def test_carries_its_config(tmp_path: Path) -> None:
    """Even one with quotes, dollars and backslashes in it."""
    hard = 'data.template="{prompt} $HOME `date` \\\\boxed{} \' end"'
    task = Task("tiny", job(hard, "data.source=dataset", "data.train={path: x}", "reward.verifier=math",
                            directory=tmp_path, python="/bin/true"))
    assert run(local_text(task, 5000, tmp_path / "stamps")).returncode == 0
    assert configs.load(task.job.config_file) == task.job.config


def test_nothing_in_vain(tmp_path: Path) -> None:
    """nemo-run starts what depends on a failed task; the task itself does not."""
    stamps, place = tmp_path / "stamps", job(directory=tmp_path)
    first = Task("first", place, ("bash", "-c", "exit 3"))
    second = Task("second", place, ("echo", "started"), needs=("first",))
    anyway = dataclasses.replace(second, name="anyway", after="end")
    never = run(local_text(second, 1, stamps))
    assert (never.returncode, never.stdout) == (2, "")
    assert "second: not started, for first did not succeed" in never.stderr
    assert run(local_text(first, 1, stamps)).returncode == 3
    assert run(local_text(second, 1, stamps)).returncode == 2
    assert run(local_text(anyway, 1, stamps)).stdout == "started\n"
    fixed = dataclasses.replace(first, argv=("true",))
    assert run(local_text(fixed, 1, stamps)).returncode == 0
    assert run(local_text(second, 1, stamps)).stdout == "started\n"


def test_notice(tmp_path: Path) -> None:
    """In a script that runs srun in the foreground, the trap acts while srun runs; its exit status is kept."""
    task = Task("tiny", job(directory=tmp_path))
    played = tmp_path / "srun"
    played.write_text("#!/bin/bash\nkill -USR1 $PPID\nfor ((i = 0; i < 100; i++)); do\n"
                      f"    [[ -e {task.job.root}/interrupt ]] && exit 130\n    sleep 0.1\ndone\nexit 1\n")
    played.chmod(0o755)
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    done = run(f"PATH={tmp_path}:$PATH; SLURM_JOB_ID=7\n{slurm_setup(task)}\nsrun --a b\nexit $?\n")
    assert done.returncode == 130, done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert "requeue 1" in (task.job.root / "launch" / "7.log").read_text()
    assert "requeue 1" not in done.stdout


@pytest.mark.parametrize("argv", [(), ("siri", "convert")])
def test_no_terminal(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """What nemo-run's script exports to have unbuffered output does not reach srun (on a real one: slurm/test_nemo)."""
    task = Task("tiny", job(directory=tmp_path), argv)
    (tmp_path / "srun").write_text('#!/bin/bash\necho "<${SLURM_UNBUFFEREDIO-unset}>"\n')
    (tmp_path / "srun").chmod(0o755)
    before = f"PATH={tmp_path}:$PATH; SLURM_JOB_ID=7; export SLURM_UNBUFFEREDIO=1\n"
    assert run(f"{before}srun\n").stdout == "<1>\n"
    said = run(f"{before}{slurm_setup(task)}\nsrun\n").stdout
    assert (said or (task.job.root / "launch" / "7.log").read_text()) == "<unset>\n"


@pytest.mark.parametrize(("log", "into"), [("launch/%j.log", 'launch/"$SLURM_JOB_ID".log 2>&1'),
                                           ("all.log", "all.log 2>&1"), ("%x/%j.log", "}")])
def test_what_srun_says_is_in_the_runs_log(log: str, into: str) -> None:
    assert slurm_setup(Task("tiny", job(f"launch.slurm.log={log}"))).endswith(into)
