"""Which Python a run starts under, from an environment with torch and from one without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from siri_megatron.config import load
from siri_megatron.errors import ConfigError
from siri_megatron.launch import interpreter
from siri_megatron.launch.spec import PACKAGE_ROOT

TINY = PACKAGE_ROOT / "configs" / "tiny.yaml"


@pytest.fixture
def login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """No torch here."""
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)


def test_the_python_that_has_torch_is_taken(tmp_path: Path) -> None:
    assert interpreter.runs_python(load(TINY), tmp_path) == sys.executable


def test_a_named_one_comes_first(login_node: None) -> None:
    assert interpreter.runs_python(load(TINY, ["launch.python=/there/python"])) == "/there/python"


def test_on_a_login_node_the_repositorys_own_is_taken(login_node: None, tmp_path: Path) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert interpreter.runs_python(load(TINY), tmp_path) == str(python)


def test_none_is_refused(login_node: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no torch, and .*\.venv/bin/python does not exist"):
        interpreter.runs_python(load(TINY), tmp_path)
