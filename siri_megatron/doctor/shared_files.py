"""Does a directory behave as a run needs it, between two processes, on two nodes where there are two?

    python -m siri_megatron.doctor.shared_files peer DIRECTORY     answers the first process through files alone
    python -m siri_megatron.doctor.shared_files clock DIRECTORY    prints this node's name and its clock's offset

What the run relies on: a file that one renames into place is seen whole by the other, a lock that one holds keeps the
other out and falls when its holder is killed, an exclusive creation succeeds once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAIT_S = 20.0
POLL_S = 0.01
SIZE = 1 << 20


def examine(directory: Path) -> dict[str, Any]:
    """The facts that `judge.shared` reads."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    inodes = os.statvfs(existing)
    facts: dict[str, Any] = {"path": str(directory), "type": file_system(existing), "peer": "a second process here",
                             "errors": [], "seen_s": 0.0, "free": shutil.disk_usage(existing).free,
                             "inodes": inodes.f_favail if inodes.f_files else None, "skew_s": 0.0}
    try:
        with tempfile.TemporaryDirectory(prefix=".siri-doctor-", dir=existing) as place:
            facts["skew_s"] = offset(Path(place))
            _with_peer(Path(place), facts)
    except OSError as error:
        facts["errors"].append(f"{error.strerror or error} ({error.filename or existing})")
    return facts


def _with_peer(place: Path, facts: dict[str, Any]) -> None:
    prefix, where = _elsewhere()
    facts["peer"] = where
    peer = subprocess.Popen((*prefix, sys.executable, "-m", "siri_megatron.doctor.shared_files", "peer", str(place)),
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        if not _wait(lambda: (place / "ready").exists() or peer.poll() is not None):
            facts["errors"].append(f"the second process saw nothing within {WAIT_S:g} s")
            return
        if peer.poll() is not None:
            said = peer.communicate()[1].strip().splitlines() or ["nothing"]
            facts["errors"].append(f"the second process ended with {peer.returncode}: {said[-1][:200]}")
            return
        _renamed(place, facts)
        _locked(place, facts)
    finally:
        peer.kill()
        peer.wait()


def _renamed(place: Path, facts: dict[str, Any]) -> None:
    """What is renamed into place is seen whole, and soon."""
    (place / "part").write_bytes(os.urandom(SIZE))
    started = time.monotonic()
    os.rename(place / "part", place / "whole")
    if not _wait((place / "seen").exists):
        facts["errors"].append(f"a renamed file was not seen within {WAIT_S:g} s")
    elif (place / "seen").read_text() != str(SIZE):
        facts["errors"].append(f"a renamed file was seen with {(place / 'seen').read_text()} of {SIZE} bytes")
    facts["seen_s"] = time.monotonic() - started


def _locked(place: Path, facts: dict[str, Any]) -> None:
    """The peer holds the lock by now, and made the file `once`."""
    if not _wait((place / "holds").exists):
        facts["errors"].append(f"flock was not granted within {WAIT_S:g} s")
        return
    with (place / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            facts["errors"].append("flock was granted to two processes at once")
        except BlockingIOError:
            pass
    try:
        os.close(os.open(place / "once", os.O_CREAT | os.O_EXCL))
        facts["errors"].append("an exclusive creation succeeded twice")
    except FileExistsError:
        pass


def peer(place: Path) -> None:
    """The second process: sees, locks, and holds until it is killed."""
    _put(place, "ready", "")
    if not _wait((place / "whole").exists):
        return
    os.close(os.open(place / "once", os.O_CREAT | os.O_EXCL))
    _put(place, "seen", str((place / "whole").stat().st_size))
    with (place / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _put(place, "holds", "")
        time.sleep(2 * WAIT_S)


def _put(place: Path, name: str, text: str) -> None:
    (place / f".{name}").write_text(text)
    os.rename(place / f".{name}", place / name)


def offset(place: Path) -> float:
    """This node's clock minus the file system's, seconds."""
    with tempfile.NamedTemporaryFile(dir=place, prefix=".siri-clock-") as file:
        before = time.time()
        os.utime(file.name)
        return (before + time.time()) / 2 - os.stat(file.name).st_mtime


def _elsewhere() -> tuple[tuple[str, ...], str]:
    """How to start a process on another node of the job; here, where there is none."""
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) < 2 or shutil.which("scontrol") is None:
        return (), "a second process here"
    names = subprocess.run(("scontrol", "show", "hostnames"), capture_output=True, text=True, timeout=WAIT_S,
                           check=False).stdout.split()
    own = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    other = next((name for name in names if name != own), "")
    return (("srun", "--overlap", "--nodes=1", "--ntasks=1", "-w", other), f"node {other}") if other else \
        ((), "a second process here")


def file_system(path: Path) -> str:
    """Its type, by the longest mount point that leads there."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    real = str(path.resolve())
    fitting = [(at, kind) for at, kind in mounts if real == at or real.startswith(at.rstrip("/") + "/")]
    return max(fitting, key=lambda one: len(one[0]), default=("", "unknown"))[1]


def _wait(done: Any) -> bool:
    end = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    if sys.argv[1] == "peer":
        peer(Path(sys.argv[2]))
    else:
        print(os.environ.get("SLURMD_NODENAME", socket.gethostname()), f"{offset(Path(sys.argv[2])):.3f}", flush=True)
