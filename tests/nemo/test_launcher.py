"""The environment of a login node (`make setup-launch`): no torch in it, and siri's side of nemo-run works there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from siri_megatron import config as configs
from siri_megatron.launch.spec import PACKAGE_ROOT

LAUNCHER = PACKAGE_ROOT / ".venv-launch" / "bin"
HEAVY = {"torch", "megatron", "vllm"}
SHIPPED = {"tiny": "tiny", "tiny_bucketed": "tiny-bucketed", "r1_1_5b": "r1-distill-1.5b", "r1_7b": "r1-distill-7b"}
SLURM = """
import json
from pathlib import Path
from siri_megatron import config as configs
from siri_megatron.errors import ConfigError
from siri_megatron.launch.job import Place
from siri_megatron.nemo.executors import for_task, slurm_executor, with_executor
from siri_megatron.nemo.experiments import train
from siri_megatron.nemo.tunnel import SSHTunnel

def fields(executor, *overrides):
    config = configs.load(Path("configs/r1-distill-7b.yaml"), ["launch.python=python3", *overrides])
    try:
        config = with_executor(config, executor)
    except ConfigError as error:
        return error.what
    (task,) = train(config, Place(Path("/there"), "python"))
    script, its_own = for_task(executor, task, Path("/stamps"))
    return {key: getattr(its_own, key) for key in (
        "nodes", "ntasks_per_node", "gpus_per_node", "time", "partition", "account", "qos", "exclusive", "mem",
        "signal", "container_image", "container_mounts", "srun_args", "additional_parameters", "retries")} | {
        "constraint": its_own.constraint, "script": script.inline, "log": its_own.job_details.log}
"""


@pytest.fixture(scope="module")
def launcher() -> Path:
    assert (LAUNCHER / "nemorun").is_file(), "make setup-launch"
    return LAUNCHER


def asked(launcher: Path, code: str, home: Path) -> Any:
    """What this code prints as JSON, under the launcher's Python."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT), "NEMORUN_HOME": str(home)}
    done = subprocess.run([str(launcher / "python"), "-c", code], cwd=PACKAGE_ROOT, env=environment, timeout=300,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_is_no_torch_and_none_is_needed(launcher: Path, tmp_path: Path) -> None:
    names = [f"siri_megatron.nemo.{path.stem}" for path in (PACKAGE_ROOT / "siri_megatron" / "nemo").glob("[a-z]*.py")]
    code = (f"import json, sys, siri_megatron.launch.launch_command, {', '.join(names)}\n"
            "from importlib.util import find_spec\n"
            f"print(json.dumps([name for name in {sorted(HEAVY)} if name in sys.modules or find_spec(name)]))")
    assert len(names) > 5
    assert asked(launcher, code, tmp_path) == []


def test_siri_launch_works_there_and_names_the_python_of_the_run(launcher: Path, tmp_path: Path) -> None:
    done = subprocess.run([str(launcher / "python"), "-m", "siri_megatron.cli", "launch", "slurm", "configs/tiny.yaml",
                           f"runs_dir={tmp_path}", "--dry-run"], cwd=PACKAGE_ROOT, timeout=300, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}, check=False)
    assert done.returncode == 0, done.stderr
    assert f"command=({PACKAGE_ROOT}/.venv/bin/python -m siri_megatron.cli train" in done.stdout


def test_factories_are_the_shipped_configs(launcher: Path, tmp_path: Path) -> None:
    """Built from nemo-run's form they are the configs; an override in its syntax reaches the key."""
    code = ("import json, fiddle\nfrom siri_megatron import config as configs\nfrom siri_megatron.nemo import cli\n"
            "from nemo_run.cli import parse_cli_args\n"
            "def built(raw):\n"
            "    return configs.validate(cli._plain(fiddle.build(raw)), 'x').model_dump(mode='json')\n"
            f"told = {{name: built(getattr(cli, name)()) for name in {sorted(SHIPPED)}}}\n"
            "overrides = ['budget.l_min=32', 'optimizer.lr*=2', 'launch.env={\"A\": \"1\"}']\n"
            "changed = parse_cli_args(cli.tiny(), overrides)\n"
            "told['changed'] = built(changed)\nprint(json.dumps(told))")
    told = asked(launcher, code, tmp_path)
    for factory, name in SHIPPED.items():
        shipped = configs.load(PACKAGE_ROOT / "configs" / f"{name}.yaml")
        assert told[factory] == shipped.model_dump(mode="json")
    tiny = configs.load(PACKAGE_ROOT / "configs" / "tiny.yaml", ["budget.l_min=32", "optimizer.lr=6e-4"])
    assert told["changed"]["budget"] == tiny.model_dump(mode="json")["budget"]
    assert told["changed"]["launch"]["env"] == {"A": "1"}
    assert told["changed"]["optimizer"]["lr"] == pytest.approx(6e-4)


def test_a_slurm_executor_has_what_the_config_asks_for(launcher: Path, tmp_path: Path) -> None:
    code = SLURM + """
print(json.dumps([fields(slurm_executor()),
                  fields(slurm_executor(partition="gpu", time="2-00:00:00", constraint="h100",
                                        container_image="x.sqsh"),
                         "launch.slurm.account=project", "launch.slurm.mounts=[]"),
                  fields(slurm_executor(nodes=3)), fields(slurm_executor(time="0:05:00")),
                  fields(slurm_executor(SSHTunnel(host="login", user="u", job_dir="/jobs")), "launch.python=''")]))"""
    plain, given, nodes, short, remote = asked(launcher, code, tmp_path)
    assert (plain["nodes"], plain["ntasks_per_node"], plain["gpus_per_node"]) == (2, 1, 8)
    assert (plain["time"], plain["exclusive"], plain["mem"], plain["retries"]) == ("1-00:00:00", True, "0", 0)
    assert plain["signal"].startswith("B:USR1@")
    assert "--kill-on-bad-exit=0" in plain["srun_args"]
    assert "--chdir=/there" in plain["srun_args"]
    assert plain["additional_parameters"]["kill-on-invalid-dep"] == "yes"
    assert plain["log"].endswith("/launch/%j.log")
    assert 'command+=(--head "$SIRI_HEAD" --node "$SLURM_NODEID")' in plain["script"]
    assert (given["partition"], given["account"], given["time"]) == ("gpu", "project", "2-00:00:00")
    assert (given["constraint"], given["container_image"]) == ("h100", "x.sqsh")
    assert "--container-workdir=/there" in given["srun_args"]
    assert nodes == "the executor has nodes=3, the config launch.nodes=2"
    assert "launch.slurm.time_limit=0:05:00" in short
    assert remote == "jobs are submitted over ssh to login, and launch.python is empty"
