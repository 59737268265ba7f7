"""Which directory a user means by a Megatron checkpoint, and where its Hugging Face side is.

    DST/latest_checkpointed_iteration.txt   `release` (written here) or an iteration (Megatron-LM)
    DST/release/                            .metadata, metadata.json, common.pt, *.distcp
    DST/hf/                                 config.json, tokenizer, generation config

The checkpoints of a run are understood too: checkpoints/step-NNNNNN (committed) or its megatron/; their Hugging Face
side is the run's model.path.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from siri_megatron.checkpoint import record
from siri_megatron.errors import ModelError

TRACKER, RELEASE, HF = "latest_checkpointed_iteration.txt", "release", "hf"
STATE = "megatron"
MARK = "metadata.json"
RULE = ("a Megatron checkpoint is a directory with metadata.json, one with latest_checkpointed_iteration.txt, "
        "or a run's checkpoints/step-NNNNNN")


def find_state(path: Path) -> Path:
    """The directory that holds metadata.json.

    Raises:
        ModelError: there is none, or the run's checkpoint was never committed.
    """
    if (path / TRACKER).is_file():
        path = _tracked(path)
    elif (path / STATE / MARK).is_file():
        if record.read_record(path) is None:
            raise ModelError(f"{path} has no {record.FILE}", rule="only committed checkpoints of a run are read",
                             fix="take another step of the run")
        path = path / STATE
    if (path / MARK).is_file():
        return path
    raise ModelError(f"{path} is no Megatron checkpoint: {_looks_like(path)}", rule=RULE, fix="give such a directory")


def find_hf(state: Path, given: Path | None) -> Path:
    """The directory with the config.json and the tokenizer that belong to a checkpoint.

    Raises:
        ModelError: there is none beside it, and none was given.
    """
    candidates = [given] if given else [state.parent / HF, state / HF, *_of_run(state)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(f"no config.json for {state}: looked in {', '.join(map(str, candidates))}",
                     rule="config and tokenizer lie in hf/ beside the checkpoint, or at the run's model.path",
                     fix="give the Hugging Face directory of the model with --hf DIR")


def _tracked(path: Path) -> Path:
    said = (path / TRACKER).read_text(errors="replace").strip()
    if said != RELEASE and not said.isdigit():
        raise ModelError(f"{path / TRACKER} says {said[:40]!r}", rule="an iteration number, or `release`",
                         fix="give the directory of the iteration itself")
    return path / (RELEASE if said == RELEASE else f"iter_{int(said):07d}")


def _of_run(state: Path) -> list[Path]:
    """model.path of the run that state (checkpoints/step-NNNNNN/megatron) lies in."""
    parents = state.resolve().parents
    if len(parents) < 3 or not (config := parents[2] / "config.yaml").is_file():
        return []
    try:
        return [Path(yaml.safe_load(config.read_text())["model"]["path"])]
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError):
        return []  # not a run's


def _looks_like(path: Path) -> str:
    if not path.is_dir():
        return "it is a file" if path.exists() else "it does not exist"
    if (path / "config.json").is_file():
        return "it is a Hugging Face directory"
    return "it holds " + (", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing")
