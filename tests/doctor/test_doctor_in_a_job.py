"""The doctor inside a job of two nodes of a real Slurm (slurm/testcluster)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = str(ROOT / "slurm" / "testcluster")
PROBED = ("slurm", "nodes", "shared")
JOB = """#!/bin/bash
{python} - <<'DOCTOR' > {out}
import json, os
from pathlib import Path
from siri_megatron.doctor.command import checked
print(json.dumps([vars(check) for name in {probed} for check in checked(name, Path("{place}"), os.environ)]))
DOCTOR
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of its users; skipped where there is no Slurm, but not in CI."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if not all(shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Slurm here (Debian's slurmctld, slurmd, "
                                                                         "slurm-client, munge)")
    root = Path(tempfile.mkdtemp(prefix="siri-doc-"))  # short: munge's socket has a path of at most 107 bytes
    root.rmdir()
    try:
        subprocess.run([CLUSTER, "up", str(root), "--nodes", "2"], check=True, timeout=60, stdout=subprocess.DEVNULL)
        yield os.environ | {"SLURM_CONF": str(root / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    finally:
        subprocess.run([CLUSTER, "down", str(root)], check=True, timeout=90, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("requeue", [True, False])
def test_a_job_of_two_nodes(cluster: dict[str, str], tmp_path: Path, requeue: bool) -> None:
    """Slurm's own words, the clock of each node, and files as the two nodes see each other's."""
    job = JOB.format(python=sys.executable, out=tmp_path / "out", place=tmp_path, probed=PROBED)
    (tmp_path / "job.sh").write_text(job)
    subprocess.run(["sbatch", "--wait", "-N2", "--ntasks-per-node=2", "--requeue" if requeue else "--no-requeue",
                    "-o", str(tmp_path / "log"), str(tmp_path / "job.sh")], env=cluster, check=True, timeout=240,
                   stdout=subprocess.DEVNULL)
    checks = {check["name"]: check for check in json.loads((tmp_path / "out").read_text())}
    assert checks["slurm"]["status"] == "pass"
    assert "in job" in checks["slurm"]["found"]
    assert checks["requeue"]["status"] == ("pass" if requeue else "warn")
    assert checks["clocks of 2 nodes"]["status"] == "pass"
    assert checks["shared files"]["status"] == "pass"
    assert "with node n" in checks["shared files"]["found"]
