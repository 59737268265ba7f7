from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import REPO, Cluster

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four virtual nodes of a real Slurm; skipped where it is not installed, but not in CI."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        reason = f"no Slurm here ({', '.join(missing)} not found): apt-get install slurmctld slurmd slurm-client munge"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    root = Path(tempfile.mkdtemp(prefix="siri-slurm-"))  # short: munge's socket has a path of at most 107 bytes
    try:
        subprocess.run([str(REPO / "slurm" / "testcluster"), "up", str(root)], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
        yield Cluster(root)
    finally:
        subprocess.run([str(REPO / "slurm" / "testcluster"), "down", str(root)], check=True, timeout=90)
        assert not root.exists()
