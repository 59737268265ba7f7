"""Last words: exit status and failures/<role>.json of a child, whatever it died of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from launch_processes import Marked, wait_for

FRAME = """
import sys, time
from pathlib import Path
from siri_megatron.errors import ConfigError, EngineError
from siri_megatron.launch.lastwords import guarded_main
from siri_megatron.paths import RunDir

def fn():
{body}

guarded_main("learner-3", RunDir(Path(sys.argv[1])), fn)
"""


def script(body: str) -> str:
    return FRAME.format(body=textwrap.indent(body, "    "))


def run(body: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script(body), str(root)], capture_output=True, text=True, timeout=180,
                          check=False)


@pytest.mark.parametrize(("body", "status", "what"), [
    ("return None", 0, None),
    ("return 5", 5, None),
    ("raise SystemExit(4)", 4, None),
    ("raise ConfigError('tp=3, heads=4', rule='divides', fix='tp=2')", 2, "tp=3, heads=4"),
    ("raise EngineError('engine-1 said 500')", 3, "engine-1 said 500"),
    ("raise KeyError('step')", 3, "KeyError: 'step' (<string>:9)"),
    ("raise RuntimeError('first line\\n  long wall')", 3, "RuntimeError: first line (<string>:9)"),
    ("raise KeyboardInterrupt", 3, "KeyboardInterrupt (<string>:9)"),
    ("raise OSError(2, 'Not here', 'x')", 3, "FileNotFoundError: [Errno 2] Not here: 'x' (<string>:9)"),
])
def test_exit_status_and_words(tmp_path: Path, body: str, status: int, what: str | None) -> None:
    done = run(body, tmp_path)
    words = tmp_path / "failures" / "learner-3.json"
    assert done.returncode == status, done.stderr
    assert words.exists() == (what is not None)
    if what is not None:
        found = json.loads(words.read_text())
        assert (found["role"], found["what"]) == ("learner-3", what)
        assert found["traceback"].startswith("Traceback")
        assert found["traceback"].strip() in done.stderr


def test_a_full_disk_has_its_own_words(tmp_path: Path) -> None:
    assert run("raise OSError(28, 'No space left on device', 'ledger/step-3')", tmp_path).returncode == 3
    found = json.loads((tmp_path / "failures" / "learner-3.json").read_text())
    assert re.fullmatch(rf"{tmp_path}: No space left on device \(ledger/step-3\); [\d,]+ bytes free", found["what"])
    assert "make room" in found["fix"]


def test_words_that_cannot_be_written_are_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("in the way")
    done = run("raise ValueError('x')", tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.rstrip().endswith("ValueError: x")


def test_sigterm_unwinds_and_is_nobodys_failure(marked: Marked, tmp_path: Path) -> None:
    body = ("Path(sys.argv[1], 'ready').touch()\ntry:\n    time.sleep(600)\n"
            "finally:\n    Path(sys.argv[1], 'released').touch()")
    process = marked.start(sys.executable, "-c", script(body), str(tmp_path))
    wait_for((tmp_path / "ready").exists, "the child to be ready")
    process.terminate()
    assert process.wait(60) == 143
    assert (tmp_path / "released").exists()
    assert not (tmp_path / "failures").exists()


def test_failure_does_not_hang_on_threads_that_never_end(tmp_path: Path) -> None:
    body = "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\nraise ValueError('x')"
    assert run(body, tmp_path).returncode == 3
