"""`siri convert` as people call it: quick help, errors without traceback, exit statuses, what it says, the scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conversions import bits_equal, loaded
from models import write_model

from siri_megatron.cli import main, parse
from siri_megatron.convert.command import size
from siri_megatron.data.digit_tokenizer import write_tokenizer
from siri_megatron.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_model(tmp_path / "model", "qwen2", eos_token_id=31)
    write_tokenizer(path)
    return path


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys\nfrom siri_megatron.cli import main\ntry:\n    main(['convert', *sys.argv[1:]])\n"
            "except SystemExit:\n    print(sorted({'torch', 'rich', 'megatron', 'pydantic'} & set(sys.modules)))")
    for arguments in (["--help"], ["verify", "--help"], ["reshard"]):
        said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=180,
                              check=True, cwd=ROOT).stdout
        assert said.splitlines()[-1] == "[]"


def test_there_and_back_and_verified(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("12+34=\n\na3b8|\n")
    names = {name: str(tmp_path / name) for name in ("megatron", "other", "again")}
    assert main(["convert", "hf-to-megatron", str(model), names["megatron"], "--tp", "2", "--pp", "2", "--verify"]) == 0
    said = capsys.readouterr().out
    assert f"tensors: {len(loaded(model))} with " in said
    assert "all bits equal" in said
    assert "logits: 2 prompts, largest difference" in said
    assert "(tp=2 pp=2): 0.1 MB of qwen2 weights in float32" in said
    assert main(["convert", "reshard", names["megatron"], names["other"], "--tp", "1", "--pp", "1", "--verify"]) == 0
    assert main(["convert", "megatron-to-hf", names["other"], names["again"], "--verify", "--no-logits",
                 "--max-shard-size", "20KB"]) == 0
    assert bits_equal(loaded(tmp_path / "again"), loaded(model))
    capsys.readouterr()
    assert main(["convert", "verify", names["again"], names["megatron"], "--prompts", str(prompts)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{names['again']} and {names['megatron']} are the same model"


def test_exit_statuses(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    megatron = str(tmp_path / "megatron")
    assert main(["convert", "hf-to-megatron", str(model), megatron, "--tp", "3"]) == 2  # refused
    said = capsys.readouterr().err
    assert said.startswith("siri: tp=3 does not divide")
    assert "rule: num_attention_heads % tp == 0" in said
    assert "fix:  --tp 1, 2 and --pp 1, 2 work" in said
    assert main(["convert", "hf-to-megatron", str(model), megatron]) == 0
    other = write_model(tmp_path / "stranger", "qwen2", seed=1, eos_token_id=31)
    capsys.readouterr()
    assert main(["convert", "verify", str(other), megatron, "--no-logits"]) == 3  # failed
    assert "model.embed_tokens.weight differs" in capsys.readouterr().err


def test_refusals_do_not_speak_of_keys_of_a_run(model: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    (model / "model.safetensors").unlink()
    for source in (model, tmp_path / "nowhere"):
        assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert str(source) in said
        assert "model.path" not in said


@pytest.mark.parametrize("arguments", [["--tp", "0"], ["--tp", "two"], ["tp=2"], ["--hf", "x"], ["--dtype", "int8"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An override, which other commands take, is not silently left aside."""
    with pytest.raises(SystemExit) as caught:
        parse(["convert", "hf-to-megatron", "a", "b", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [("5GB", 5 * 10**9), ("300 kb", 300_000), ("12MB", 12_000_000), ("7", 7)])
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "GB", "0", "5TB", "-1", "1.5GB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-shard-size"):
        size(text)


def test_prompts_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["convert", "hf-to-megatron", str(model), str(tmp_path / "out"), "--verify", "--prompts"]
    assert main([*call, str(tmp_path / "nowhere")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n\n")
    assert main([*call, str(tmp_path / "empty")]) == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["hf_to_megatron", "megatron_to_hf", "reshard", "verify"])
def test_scripts(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / f"convert_{name}.py"), "--help"], capture_output=True,
                          text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: siri convert {name.replace('_', '-')}")
