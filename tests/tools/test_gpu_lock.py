"""requirements/gpu.lock: the pins of the extra, and nothing of where packages come from. The resolver is not run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from tool_modules import tool

from siri_megatron.errors import ConfigError

gpu_lock = tool("gpu_lock")


def lines() -> list[str]:
    return [line for line in gpu_lock.LOCK.read_text().splitlines() if not line.startswith("#")]


def test_the_lock_is_whole() -> None:
    assert gpu_lock.checked("\n".join(lines())) == lines()
    assert gpu_lock.LOCK.read_text().startswith(gpu_lock.HEADER)
    names = [line.partition("==")[0] for line in lines()]
    assert names == sorted(set(names))
    assert len(names) > 100
    assert gpu_lock.wanted() >= {"vllm==0.32.0", "megatron-core==0.19.2", "transformer-engine==2.20.2"}
    assert "://" not in gpu_lock.LOCK.read_text()


def test_what_the_package_imports_is_in_it() -> None:
    names = {line.partition("==")[0] for line in lines()}
    assert {"aiohttp", "datasets", "httpx", "math-verify", "msgspec", "pyarrow", "pydantic", "transformers"} <= names


@pytest.mark.parametrize(("text", "said"), [
    ("--index-url https://a.example/simple\nvllm==0.32.0", "--index-url"), ("vllm @ https://a.example/v.whl", "vllm @"),
    ("vllm>=0.32.0", "vllm>=0.32.0"), ("vllm==0.31.0", "lacks megatron-core==")])
def test_another_answer_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="the lock") as caught:
        gpu_lock.checked(text)
    assert said in caught.value.what


def test_no_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="no uv here"):
        gpu_lock.resolved()


def test_what_the_package_itself_needs_is_pinned() -> None:
    """A run on the GPU machine had no report: altair had come to pyproject.toml after the lock was made."""
    project = tomllib.loads(gpu_lock.PROJECT.read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    names = {canonicalize_name(re.split(r"[\[<>=!~; ]", text)[0]) for text in asked}
    assert names - {canonicalize_name(line.partition("==")[0]) for line in lines()} == set()
