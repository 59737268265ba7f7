"""`siri prefetch` against a hub on this machine: what it fetches, and that the run's own loads then need no hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import MODEL, NAME, Hub, serving_hub

from siri_megatron.cli import main
from siri_megatron.config import load
from siri_megatron.errors import DataError
from siri_megatron.launch.prefetch import fetched_model, hub_tables, proof

REPO = Path(__file__).resolve().parents[2]
TINY = REPO / "configs" / "models" / "tiny-digits"
CONFIG = """
name: far
model: {path: MODEL}
data: {source: dataset, train: {preset: aime25}, eval: {path: EVAL}, max_prompt_tokens: 64}
budget: {l_min: 16, l_max: 64, cycle_steps: 2, cycles: 1}
optimizer: {lr: 1.0e-3}
evaluation: {problems: 1, budgets: [16, 64], suites: [{name: aime, data: {preset: aime25}, problems: 1}]}
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    files = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    monkeypatch.setattr(Hub, "model", files)
    with serving_hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield Hub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "eval.jsonl").write_text('{"prompt": "1+1?", "answer": "2", "id": "0"}\n')
    path = tmp_path / "far.yaml"
    text = CONFIG.replace("MODEL", str(tmp_path / "models" / "tiny"))
    path.write_text(text.replace("EVAL", str(tmp_path / "eval.jsonl")))
    return path


def test_fetched_and_proved(hub: type[Hub], config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fetched from the hub; the proof of it has none."""
    assert main(["prefetch", str(config), "--model", MODEL]) == 0
    said = capfd.readouterr().out
    assert f"model: {MODEL} into {tmp_path / 'models' / 'tiny'}" in said
    assert f"data: {NAME}, split test: 2 rows" in said
    assert said.count(f"data: {NAME}") == 1  # training and suite read the same
    assert "proved:" in said
    assert (tmp_path / "models" / "tiny" / "model.safetensors").read_bytes() == hub.model["model.safetensors"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]
    assert fetched_model(tmp_path / "models" / "tiny", MODEL, None).endswith("is there")
    shutil.rmtree(tmp_path / "hub")  # negative control: what is missing is found
    with pytest.raises(DataError, match="without network it does not load"):
        proof(load(config))


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "add --model OWNER/NAME"), (["--model", "someone/none"], "model someone/none cannot be had"),
    (["--model", MODEL, "data.train={path: some/none, split: test}"], "data set some/none, split test cannot be had")])
def test_what_cannot_be_had(hub: type[Hub], config: Path, arguments: list[str], said: str,
                            capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", str(config), *arguments]) == 2
    told = capfd.readouterr().err
    assert said in told
    assert "fix:" in told


def test_no_network(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert main(["prefetch", str(config), "--model", MODEL]) == 2
    assert f"model {MODEL} cannot be had" in capfd.readouterr().err
    assert not (tmp_path / "models" / "tiny").exists()


def test_a_model_that_is_not_whole_is_not_written_over(hub: type[Hub], config: Path, tmp_path: Path,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    assert main(["prefetch", str(config), "--model", MODEL]) == 2
    assert [path.name for path in (tmp_path / "models" / "tiny").iterdir()] == ["config.json"]


def test_which_tables(config: Path) -> None:
    tiny = load(REPO / "configs" / "tiny.yaml")
    assert list(hub_tables(tiny)) == []
    assert [table.path for table in hub_tables(load(config, ["data.train={preset: deepscaler}"]))] \
        == ["agentica-org/DeepScaleR-Preview-Dataset", NAME]
