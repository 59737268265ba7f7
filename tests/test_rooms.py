"""Which rooms may import what (docs/design.md): the rollout half and all decisions work without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "siri_megatron"
TORCH_FREE = ("budget", "batching", "data", "reward", "rollout", "ledger", "observe", "launch", "estimate", "doctor",
              "report", "study")
PURE = ("config", "budget", "batching", "ledger", "rollout", "reward", "data", "observe", "estimate")
"""Rooms that need none of them for anything, not even later."""
HEAVY = {"torch", "megatron", "vllm"}


def modules(room: str) -> list[str]:
    return [f"siri_megatron.{room}.{path.stem}" for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]


def imported(names: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter that has imported these modules."""
    code = f"import sys, {', '.join(names)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              timeout=180).stdout.split())


def test_torch_free_rooms_import_no_torch():
    names = ["siri_megatron.config", "siri_megatron.decisions", "siri_megatron.paths", "siri_megatron.errors"]
    names += [name for room in TORCH_FREE for name in modules(room)]
    assert len(names) > 40
    assert not imported(names) & HEAVY


def named_anywhere(path: Path) -> set[str]:
    """Top-level packages that a file imports at any place."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_pure_rooms_hide_no_import_in_a_function():
    assert [path for room in PURE for path in (PACKAGE / room).glob("*.py") if named_anywhere(path) & HEAVY] == []


def test_negative_control():
    assert "torch" in imported(["siri_megatron.weights.push"])
    assert "vllm" in named_anywhere(PACKAGE / "engine" / "serve.py"), "it imports vLLM in its functions only"


def test_the_loop_is_short():
    assert len((PACKAGE / "loop.py").read_text().splitlines()) < 100
