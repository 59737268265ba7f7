"""Job scripts: the same command whoever starts it, the shipped templates, and what bash and shellcheck say of them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siri_megatron.cli import main
from siri_megatron.config import load
from siri_megatron.launch.job import Job, Place, make_job
from siri_megatron.launch.render import local_script, sbatch_script
from siri_megatron.launch.spec import PACKAGE_ROOT

sys.path.insert(0, str(PACKAGE_ROOT / "tools"))
from slurm_templates import TEMPLATES, render

TWO = ("launch.nodes=2", "push.backend=gloo")


def job(*overrides: str, config: str = "tiny") -> Job:
    return make_job(load(PACKAGE_ROOT / "configs" / f"{config}.yaml", list(overrides)), Place(Path("/there"), "python"))


def command_of(script: str) -> list[str]:
    """What the script puts into `command` before it knows its place."""
    line = next(line for line in script.splitlines() if line.startswith("command=("))
    return shlex.split(line.removeprefix("command=(").removesuffix(")"))


def environment_of(script: str) -> dict[str, str]:
    pairs = [shlex.split(line)[1].split("=", 1) for line in script.splitlines() if line.startswith("export ")]
    return dict(pairs)


@pytest.mark.parametrize("overrides", [(), TWO, (*TWO, "launch.env={NCCL_DEBUG: INFO, X: 'a b'}",
                                                 "launch.interface=lo")])
def test_one_command(overrides: tuple[str, ...]) -> None:
    one = job(*overrides)
    for script in (sbatch_script(one), local_script(one, 5000)):
        assert command_of(script) == list(one.argv)
        assert environment_of(script) == dict(one.env)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_what_is_rendered(name: str) -> None:
    assert (PACKAGE_ROOT / "slurm" / f"{name}.sh").read_text() == render(name), "run python tools/slurm_templates.py"


@pytest.mark.parametrize("name", TEMPLATES)
def test_bash_and_shellcheck_find_nothing(name: str, tmp_path: Path) -> None:
    scripts = [tmp_path / "sbatch.sh", tmp_path / "local.sh"]
    scripts[0].write_text(render(name))
    scripts[1].write_text(local_script(job(*TEMPLATES[name][1], config=TEMPLATES[name][0]), 5000))
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-S", "warning", *map(str, scripts)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_single_node_has_no_head() -> None:
    script = sbatch_script(job())
    assert "--head" not in script
    assert "--nodes=1" in directives(script)


def test_multi_node_finds_its_head_in_the_allocation() -> None:
    script = sbatch_script(job(*TWO))
    assert 'command+=(--head "$address:$((20000 + SLURM_JOB_ID % 10000))")' in script
    assert """bash -c 'exec "$@" --node "$SLURM_NODEID"' siri "${command[@]}" &""" in script


def test_what_the_config_asks_for_is_asked_for() -> None:
    script = sbatch_script(job("launch.slurm.partition=p", "launch.slurm.account=a", "launch.slurm.qos=q",
                               "launch.slurm.directives=[--reservation=x]", "launch.slurm.setup=[module load cuda]",
                               "launch.slurm.time_limit=2-03:00:00", "checkpoint.timeout_s=60"))
    wanted = {"--partition=p", "--account=a", "--qos=q", "--reservation=x", "--time=2-03:00:00",
              "--signal=B:USR1@200", "--requeue", "--open-mode=append"}
    assert wanted <= set(directives(script))
    assert "\nmodule load cuda\n" in script


def test_container_runs_the_step_and_not_the_script() -> None:
    script = render("container")
    step = script[script.index("\nsrun "):script.index("step=$!")]
    assert "--container-image=/path/to/siri-megatron.sqsh" in step
    assert "--container-mounts=/path/to/siri-megatron:/path/to/siri-megatron,/path/to/data:/data:ro" in step
    assert "container" not in "".join(directives(script)).replace("--job-name", "")


def test_array_has_a_case_for_every_run() -> None:
    script = render("array")
    assert "--array=0-5" in directives(script)
    assert script.count("command+=(name=") == 6
    assert "%A_%a.log" in script


def test_chain_waits_for_its_name() -> None:
    assert "--dependency=singleton" in directives(render("chain"))
    assert "--dependency=singleton" not in directives(render("single-node"))


BRANCHES = [(0, 0, 0, ""), (130, 1, 0, "requeue 7"), (130, 0, 0, ""), (75, 0, 0, "requeue 7"), (3, 1, 0, ""),
            (75, 0, 1, "submit 1")]


@pytest.mark.parametrize(("status", "noticed", "forbidden", "done"), BRANCHES)
def test_who_is_requeued(tmp_path: Path, status: int, noticed: int, forbidden: int, done: str) -> None:
    run = tmp_path / "run"
    refused = "{ echo Requested operation is presently disabled >&2; exit 1; }"
    asked = f'test {forbidden} = 0 && echo "requeue $2" >>{tmp_path}/done || {refused}'
    assert ended(tmp_path, status, noticed, scontrol=asked) == (status, done)
    assert (run / "launch" / "resubmitted").exists() == bool(forbidden)
    assert (run / "interrupt").exists() == bool(noticed)


@pytest.mark.parametrize("asked", ["echo Job is pending execution for job 7 >&2; exit 1", "kill -TERM $$"])
def test_a_job_that_slurm_puts_back_is_not_submitted_as_well(tmp_path: Path, asked: str) -> None:
    """Slurm requeues a job whose node is lost by itself, and refuses to do so again; or it ends the script at the very
    moment at which that asks."""
    assert ended(tmp_path, 75, 0, scontrol=asked) == (75, "")
    assert not (tmp_path / "run" / "launch" / "resubmitted").exists()


def ended(tmp_path: Path, status: int, noticed: int, *, scontrol: str) -> tuple[int, str]:
    """Exit status of the rendered script itself, with stand-ins for Slurm's commands around it, and what they did."""
    (tmp_path / "run" / "launch").mkdir(parents=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    notice = "kill -USR1 $PPID; sleep 0.3; " if noticed else ""
    for name, body in {"srun": f"{notice}exit {status}", "scontrol": scontrol,
                       "sbatch": f'echo "submit ${{@: -1}}" >>{tmp_path}/done; echo Submitted batch job 8'}.items():
        (bin_ / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_ / name).chmod(0o755)
    script = sbatch_script(make_job(load(PACKAGE_ROOT / "configs" / "tiny.yaml", [f"runs_dir={tmp_path}", "name=run"]),
                                    Place(tmp_path, "python")))
    done = subprocess.run(["bash", "-c", script], env={"PATH": f"{bin_}:/usr/bin:/bin", "SLURM_JOB_ID": "7"},
                          timeout=20)
    file = tmp_path / "done"
    return done.returncode, file.read_text().strip() if file.exists() else ""


@pytest.mark.parametrize(("config", "noted"), [("r1-distill-7b", True), ("tiny", False)])
def test_a_model_that_lacks_something_is_noted(config: str, noted: bool, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped configs of the paper name shapes without weights: that is better known before a day in the queue."""
    path = str(PACKAGE_ROOT / "configs" / f"{config}.yaml")
    model = load(Path(path)).model.path
    changes = [f"runs_dir={tmp_path}", f"model.path={PACKAGE_ROOT / model}"]
    assert main(["launch", "slurm", path, "--dry-run", *changes]) == 0
    assert ("note     model directory" in capsys.readouterr().out) == noted
