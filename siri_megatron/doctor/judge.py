"""From what the probes found to checks. Pure: facts in, checks out; `doctor/probes.py` says what each fact is.

Invariant:
    missing_is_told_apart: what this machine need not have (a GPU on a login node, Slurm on a workstation) is skipped;
        what it has and does not work fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from siri_megatron.doctor.check import Check
from siri_megatron.rollout.vllm_surface import RELEASES

Facts = Mapping[str, Any]

MIN_PYTHON = (3, 11)
MEGATRON = ("0.16", "0.19")
"""Releases of megatron-core that the learner is tested with."""
CUDA_13_DRIVER = 580
"""The extra `gpu` is built for CUDA 13, whose first driver this is."""
GIB = 2**30
SMALL_SHM, TIGHT_SHM = 64 * 2**20, GIB
MANY_FILES, FEW_FILES = 65536, 4096
SMALL_DISK, TIGHT_DISK = GIB, 100 * GIB
WRONG_CLOCK_S, LATE_CLOCK_S = 5.0, 1.0
NOT_SHARED = ("tmpfs", "overlay", "ramfs", "squashfs")


def python(facts: Facts) -> list[Check]:
    version, found = tuple(facts["version"]), f"{'.'.join(map(str, facts['version']))} at {facts['executable']}"
    if version < MIN_PYTHON:
        return [Check("python", "fail", found, "install Python 3.11 (CPU lock) or 3.12 (extra gpu)")]
    return [Check("python", "pass", f"{found}, {facts['libc']}")]


def packages(facts: Facts) -> list[Check]:
    """Versions as installed; on a login node learners' and engines' packages may be missing."""
    return [_package(name, version) for name, version in facts["versions"].items()]


def _package(name: str, version: str | None) -> Check:
    if version is None:
        return Check(name, "skip", "not installed here")
    short = version.partition("+")[0]
    if name == "megatron-core" and not short.startswith(MEGATRON):
        return Check(name, "warn", version, f"the learner is tested with {' and '.join(MEGATRON)}")
    if name == "vllm" and short not in RELEASES:
        return Check(name, "fail", version, f"install vllm {' or '.join(RELEASES)}")
    return Check(name, "pass", version)


def gpu(facts: Facts) -> list[Check]:
    cards = facts["cards"]
    if not cards:
        return [Check("gpu", "skip", facts["why"])]
    found = f"{len(cards)} x {cards[0]['name']}, {cards[0]['memory_mib'] / 1024:.0f} GiB, driver {cards[0]['driver']}"
    checks = [Check("gpu", "pass", found)]
    if len({card["name"] for card in cards}) > 1:
        checks = [Check("gpu", "warn", f"{found}, and others", "learners of one run want equal GPUs")]
    if int(cards[0]["driver"].partition(".")[0]) < CUDA_13_DRIVER:
        checks.append(Check("driver", "fail", cards[0]["driver"],
                            f"the extra gpu is built for CUDA 13: install driver {CUDA_13_DRIVER} or later"))
    if any(card["compute_mode"] != "Default" for card in cards):
        checks.append(Check("compute mode", "warn", ", ".join(sorted({card["compute_mode"] for card in cards})),
                            "engines and learners that take turns on a GPU need the mode Default (nvidia-smi -c 0)"))
    return checks


def torch(facts: Facts) -> list[Check]:
    """The import, whether it sees the GPUs, and NCCL."""
    found = f"{facts['version']}, {facts['devices']} CUDA devices"
    if facts["gpus"] and not facts["devices"]:
        return [Check("torch import", "fail", f"{found}; the machine has {facts['gpus']}",
                      "install a CUDA build of torch for this driver; look at CUDA_VISIBLE_DEVICES")]
    if not facts["devices"]:
        return [Check("torch import", "pass", found), Check("nccl", "skip", "no CUDA device")]
    if facts["nccl_error"]:
        return [Check("torch import", "pass", found), Check("nccl", "fail", facts["nccl_error"],
                "run with NCCL_DEBUG=INFO; look at NCCL_SOCKET_IFNAME and the driver")]
    return [Check("torch import", "pass", found),
            Check("nccl", "pass", f"{facts['nccl']}, an all-reduce of one rank ran; InfiniBand: "
                                  f"{', '.join(facts['infiniband']) or 'none'}")]


def imports(name: str) -> Callable[[Facts], list[Check]]:
    """A package that was imported in a process of its own."""
    def judge(facts: Facts) -> list[Check]:
        if not facts["installed"]:
            return [Check(f"{name} import", "skip", "not installed here")]
        return [Check(f"{name} import", "pass", f"{facts['seconds']:.0f} s")]
    return judge


def vllm(facts: Facts) -> list[Check]:
    """The routes and options that are used are in its sources."""
    if not facts["installed"]:
        return [Check("vllm routes and flags", "skip", "not installed here")]
    if facts["missing"]:
        return [Check("vllm routes and flags", "fail", f"missing: {', '.join(facts['missing'])}",
                      f"install vllm {' or '.join(RELEASES)}")]
    return [Check("vllm routes and flags", "pass", f"{facts['routes']} routes, {facts['options']} options")]


def slurm(facts: Facts) -> list[Check]:
    if not facts["version"]:
        return [Check("slurm", "skip", "no scontrol here")]
    inside = f", in job {facts['job']} on {facts['nodes']}" if facts["job"] else ""
    checks = [Check("slurm", "pass", facts["version"] + inside)]
    if facts["error"]:
        return [Check("slurm", "fail", f"{facts['version']}: {facts['error']}", "ask the site: slurmctld must answer")]
    requeue = facts["requeue"]
    if requeue == "0":
        fix = "submit with --requeue, or a preempted or timed-out run ends instead of going on"
        checks.append(Check("requeue", "warn", "off by default" if not facts["job"] else "off for this job", fix))
    else:
        checks.append(Check("requeue", "pass" if requeue == "1" else "skip", "on" if requeue == "1" else "not told"))
    return checks


def shared(facts: Facts) -> list[Check]:
    """The run directory's file system, as two processes see it."""
    where = f"{facts['path']} ({facts['type']}, with {facts['peer']})"
    if facts["errors"]:
        return [Check("shared files", "fail", f"{where}: {'; '.join(facts['errors'])}",
                      "give a directory on a file system that all nodes share, with locks (NFS: not nolock)")]
    checks = [Check("shared files", "pass", f"{where}: writes, renames and locks are seen, after at most "
                                            f"{facts['seen_s']:.2f} s")]
    if facts["type"] in NOT_SHARED:
        checks = [Check("shared files", "warn", f"{where} lies on this machine only",
                        "several nodes need a shared one: --dir, and runs_dir of the config")]
    return [*checks, _disk(facts), _clock("clock against files", facts["skew_s"])]


def _disk(facts: Facts) -> Check:
    """inodes: None where the file system makes them as it goes (btrfs)."""
    free, inodes = facts["free"], facts["inodes"]
    found = f"{free / GIB:.0f} GiB{'' if inodes is None else f', {inodes} files'} free"
    if free < SMALL_DISK or (inodes is not None and inodes < 1000):
        return Check("free space", "fail", found, "make room: a checkpoint takes 14 bytes a parameter")
    if free < TIGHT_DISK:
        return Check("free space", "warn", found, "enough for small models; `siri plan` says what a run writes")
    return Check("free space", "pass", found)


def _clock(name: str, skew_s: float) -> Check:
    found, fix = f"{skew_s:+.2f} s", "let chrony or ntpd keep the clocks: time-outs and event times compare them"
    if abs(skew_s) > WRONG_CLOCK_S:
        return Check(name, "fail", found, fix)
    return Check(name, "warn", found, fix) if abs(skew_s) > LATE_CLOCK_S else Check(name, "pass", found)


def nodes(facts: Facts) -> list[Check]:
    """Clocks of the job's nodes, each against the shared file system, and whether each sees it."""
    if facts["why"]:
        return [Check("clocks of the nodes", "skip", facts["why"])]
    offsets: Mapping[str, float] = facts["offsets"]
    if len(offsets) < facts["expected"]:
        return [Check("clocks of the nodes", "fail", f"{len(offsets)} of {facts['expected']} nodes answered: "
                      f"{', '.join(offsets) or facts['error']}", "run `srun -N N hostname` in the job: every node must "
                      "start steps and see the directory")]
    spread = max(offsets.values()) - min(offsets.values())
    return [_clock(f"clocks of {len(offsets)} nodes", spread)]


def shm(facts: Facts) -> list[Check]:
    size, free = facts["size"], facts["free"]
    found = f"{size / GIB:.1f} GiB, {free / GIB:.1f} free"
    fix = "push.backend=shm writes the weights there: --shm-size or --ipc=host for a container, else remount it larger"
    if not size or free < SMALL_SHM:
        return [Check("/dev/shm", "fail", found, fix)]
    return [Check("/dev/shm", "warn", found, fix) if free < TIGHT_SHM else Check("/dev/shm", "pass", found)]


def limits(facts: Facts) -> list[Check]:
    """-1: unlimited. The soft limit is raised to the hard one by the collector itself."""
    files, locked = facts["files"], facts["locked"]
    fix = "raise it: `ulimit -Hn 65536` in /etc/security/limits.conf or the unit of slurmd (LimitNOFILE)"
    status = "pass" if files == -1 or files >= MANY_FILES else "warn" if files >= FEW_FILES else "fail"
    checks = [Check("open files", status, f"hard limit {files if files >= 0 else 'none'}",  # type: ignore[arg-type]
                    "" if status == "pass" else fix)]
    if facts["infiniband"] and locked != -1:
        checks.append(Check("locked memory", "warn", f"hard limit {locked / 2**20:.0f} MiB",
                            "NCCL over InfiniBand registers memory: LimitMEMLOCK=infinity for slurmd"))
    return checks


def proxies(facts: Facts) -> list[Check]:
    names: Sequence[str] = facts["names"]
    if not names:
        return [Check("proxies", "pass", "none set")]
    return [Check("proxies", "warn", f"{', '.join(names)} set", "nothing to mend for a run (its processes do without); "
                  "tools of your own need no_proxy for the nodes")]


def network(facts: Facts) -> list[Check]:
    checks = [Check("ports", "pass", f"{facts['bound']} free ports on loopback")] if facts["bound"] else \
        [Check("ports", "fail", facts["error"], "the loopback interface must be up")]
    if facts["resolves"]:
        return [*checks, Check("host name", "pass", f"{facts['host']} is {', '.join(facts['resolves'])}")]
    return [*checks, Check("host name", "warn", f"{facts['host']} has no address",
                           "gloo asks for it: add it to /etc/hosts, or set GLOO_SOCKET_IFNAME to the interface")]


JUDGES: dict[str, Callable[[Facts], list[Check]]] = {
    "python": python, "packages": packages, "gpu": gpu, "torch": torch, "megatron": imports("megatron-core"),
    "transformer_engine": imports("transformer-engine"), "vllm": vllm, "slurm": slurm, "shared": shared, "nodes": nodes,
    "shm": shm, "limits": limits, "proxies": proxies, "network": network}
"""probe -> what judges it, in the order of the report."""
