"""The guard against real processes that fork, detach and ignore SIGTERM."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from launch_processes import Marked, wait_for

from siri_megatron.launch import procfs
from siri_megatron.launch.sockets import remove_sockets

CHILDREN = str(Path(__file__).with_name("launch_children.py"))
PYTHON = sys.executable


def guard(marked: Marked, *command: str, grace: float = 0.3) -> subprocess.Popen[str]:
    return marked.start(PYTHON, "-m", "siri_megatron.launch.guard", "--tag", marked.value, "--grace", str(grace), "--",
                        *command, stdin=subprocess.PIPE)


def tree(marked: Marked) -> subprocess.Popen[str]:
    """A guard over a child, a grandchild in the same group, and a detached one; all ignore SIGTERM."""
    process = guard(marked, PYTHON, CHILDREN, "tree")
    wait_for(lambda: len(marked.named("tree")) == 3, "the tree to stand")
    return process


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(0)", 0), ("raise SystemExit(7)", 7),
                                              ("import os; os.kill(os.getpid(), 9)", 137),
                                              ("import os; os.kill(os.getpid(), 15)", 143)])
def test_exit_status_is_passed_through(marked: Marked, code: str, status: int) -> None:
    assert guard(marked, PYTHON, "-c", code).wait(60) == status


def test_command_that_does_not_exist(marked: Marked) -> None:
    process = guard(marked, "/no/such/program")
    assert process.wait(60) == 127
    assert "/no/such/program" in process.communicate()[1]


@pytest.mark.parametrize("order", [b"S", b"K", None])
def test_order_or_closed_pipe_ends_the_whole_tree(marked: Marked, order: bytes | None) -> None:
    process = tree(marked)
    assert process.stdin
    if order:
        os.write(process.stdin.fileno(), order)
    else:
        process.stdin.close()
        process.stdin = None
    assert process.wait(60) == 137
    assert marked.living() == []


def test_sigterm_to_the_guard_ends_the_whole_tree(marked: Marked) -> None:
    process = tree(marked)
    process.terminate()
    assert process.wait(60) == 137
    assert marked.living() == []


def test_ctrl_c_is_not_the_guards_business(marked: Marked) -> None:
    process = tree(marked)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert len(marked.named("tree")) == 3


def test_what_a_child_leaves_behind_is_ended(marked: Marked) -> None:
    assert guard(marked, PYTHON, CHILDREN, "leaver").wait(60) == 7
    assert marked.living() == []


def test_child_dies_with_a_killed_guard_and_the_tag_finds_the_rest(marked: Marked) -> None:
    process = tree(marked)
    child = procfs.descendants(process.pid)[0]
    process.kill()
    process.wait(60)
    wait_for(lambda: not Path(f"/proc/{child}").exists() or child not in procfs.parents(), "the child's death")
    orphans = marked.named("tree")
    assert len(orphans) == 2  # the negative control: without a guard, grandchildren do survive
    assert sorted(procfs.tagged(marked.value)) == sorted(orphans)
    procfs.end(lambda: procfs.tagged(marked.value), 0.0, reap=lambda: None)
    assert marked.living() == []


TITLED = """
import subprocess, sys
code = ("import setproctitle, time; setproctitle.setproctitle('VLLM::EngineCore'); print('titled', flush=True); "
        "time.sleep(600)")
subprocess.run([sys.executable, "-c", code])
"""


def test_the_tag_finds_an_engine_core_that_has_a_title(marked: Marked) -> None:
    """It outlives its server, and once had no environment that could be read."""
    process = guard(marked, PYTHON, "-c", TITLED)
    assert process.stdout
    assert process.stdout.readline() == "titled\n"
    server, core = procfs.descendants(process.pid)
    assert Path(f"/proc/{core}/cmdline").read_bytes().startswith(b"VLLM::EngineCore")
    process.kill()
    process.wait(60)
    wait_for(lambda: server not in procfs.parents(), "the server's death")
    assert procfs.tagged(marked.value) == [core]
    procfs.end(lambda: procfs.tagged(marked.value), 0.0, reap=lambda: None)
    assert marked.living() == []


def test_guard_of_a_dead_supervisor_also_ends_orphans_of_a_killed_guard(marked: Marked) -> None:
    first, second = tree(marked), guard(marked, PYTHON, CHILDREN, "sleep")
    first.kill()
    first.wait(60)
    assert second.stdin
    second.stdin.close()
    second.stdin = None
    second.wait(60)
    assert marked.living() == []


def test_child_is_bound_to_its_cores(marked: Marked) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    process = marked.start(PYTHON, "-m", "siri_megatron.launch.guard", "--tag", "t", "--cores", str(core), "--", PYTHON,
                           "-c", "import os; print(os.sched_getaffinity(0))", stdin=subprocess.PIPE)
    process.wait(60)
    assert process.stdout
    assert process.stdout.read().strip() == str({core})


HELD = """
import mmap, os, sys, time
path = "/dev/shm/" + sys.argv[1]
if os.fork():
    time.sleep(600)
with open(path, "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
    print(path, os.getppid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["pipe closed", "guard ended", "child killed", "guard killed"])
def test_shared_memory_goes_with_the_tree(marked: Marked, how: str) -> None:
    """vLLM's workers leave theirs whenever they are ended from outside."""
    other = guard(marked, PYTHON, CHILDREN, "sleep")
    process = guard(marked, PYTHON, "-c", HELD, f"psm_{marked.value}")
    assert process.stdout
    path, child = map(Path, process.stdout.readline().split())
    assert path.exists()
    assert process.stdin
    if how == "pipe closed":
        process.stdin.close()
        process.stdin = None
    elif how == "guard ended":
        process.terminate()
    elif how == "child killed":
        os.kill(int(child.name), signal.SIGKILL)
    else:
        process.kill()
    process.wait(60)
    assert other.stdin
    other.stdin.close()  # the supervisor is gone: the other guard sweeps
    other.stdin = None
    other.wait(60)
    assert not path.exists()


LOOKING = """
import sys
from pathlib import Path
from siri_megatron.launch import guard

def told(pids):
    names = made_by(pids)
    if names:
        Path(sys.argv[1]).touch()
    return names

made_by, guard.made_by, guard.LOOK_S = guard.made_by, told, 0.1
sys.exit(guard.parse(sys.argv[2:]).run())
"""
ALONE = HELD.replace("if os.fork():", "if False:")


def test_shared_memory_goes_that_a_child_leaves_which_ends_by_itself(marked: Marked, tmp_path: Path) -> None:
    """Nothing of it can be read any more by then, so it must have been noted while it lived."""
    path = Path(f"/dev/shm/psm_{marked.value}")
    process = marked.start(PYTHON, "-c", LOOKING, str(tmp_path / "noted"), "--tag", marked.value, "--", PYTHON, "-c",
                           ALONE, path.name, stdin=subprocess.PIPE)
    try:
        wait_for((tmp_path / "noted").exists, "the guard's look")
        assert path.exists()
        os.kill(procfs.descendants(process.pid)[0], signal.SIGKILL)
        process.wait(60)
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "held"), [("psm_{}", True), ("weights-{}", False)])
def test_shared_memory_of_others_stays(marked: Marked, name: str, held: bool) -> None:
    """Somebody else maps it as well, or its name is nobody's making."""
    process = guard(marked, PYTHON, "-c", HELD, name.format(marked.value))
    assert process.stdout
    path = Path(process.stdout.readline().split()[0])
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) if held else nullcontext():
            process.terminate()
            process.wait(60)
        assert path.exists()
    finally:
        path.unlink(missing_ok=True)


SOCKETS = """
import os, socket, sys, time
place = os.environ["VLLM_RPC_BASE_PATH"]
path = f"{place}/01234567-89ab-cdef-0123-456789abcdef"
socket.socket(socket.AF_UNIX).bind(path)
print(oct(os.stat(place).st_mode & 0o777), len(path), place, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["child killed", "pipe closed", "guard killed"])
def test_sockets_go_with_the_child(marked: Marked, how: str) -> None:
    """vLLM's processes leave theirs when they are killed, by themselves in /tmp, where nobody looks for them."""
    process = guard(marked, PYTHON, "-c", SOCKETS)
    assert process.stdout
    assert process.stdin
    mode, length, place = process.stdout.readline().split()
    assert (mode, int(length) < 100, Path(place).exists()) == ("0o700", True, True)
    if how == "child killed":
        os.kill(procfs.descendants(process.pid)[0], signal.SIGKILL)
    elif how == "pipe closed":
        process.stdin.close()
        process.stdin = None
    else:
        process.kill()
    process.wait(60)
    if how == "guard killed":
        assert Path(place).exists(), "the negative control: nobody has removed it yet"
        remove_sockets(marked.value)  # what supervisor, agent and other guards do
    assert not Path(place).exists()


def test_guard_imports_the_standard_library_only() -> None:
    script = ("import sys, json; import siri_megatron.launch.guard; "
              "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))")
    names = set(json.loads(subprocess.run([PYTHON, "-S", "-c", script], check=True, capture_output=True, text=True,
                                          cwd=Path(__file__).parents[2]).stdout))
    assert names - sys.stdlib_module_names - {"__main__", "siri_megatron", "_distutils_hack"} == set()
