"""`siri prefetch CONFIG`: fetch what a run reads from the network, so that compute nodes can do without one.

    model and tokenizer (--model OWNER/NAME) ──► model.path     data sets and suites of the hub ──► the cache (HF_HOME)

Then the proof: a child process that has no hub loads everything as the run will.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.config import DatasetConfig, RunConfig
from siri_megatron.errors import DataError, ModelError, gib
from siri_megatron.launch.model_files import inspect_model

ROOT = Path(__file__).resolve().parents[2]
MODEL_LIMIT_S = 6 * 3600.0
PROOF_LIMIT_S = 1800.0
NOBODY = "http://127.0.0.1:9"
"""An address where no hub answers."""
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def prefetch(args: Namespace) -> int:
    """The command. Raises DataError or ModelError where something cannot be had."""
    config = configs.load(args.config, args.overrides)
    print(fetched_model(config.model.path, args.model, args.revision), flush=True)
    for table in hub_tables(config):
        print(fetched_table(table, config.data.hub_timeout_s), flush=True)
    print(proof(config), flush=True)
    return 0


def fetched_model(path: Path, repository: str | None, revision: str | None) -> str:
    """The model directory, fetched from the hub if it is not there; returns what to say.

    Raises:
        ModelError: it is not there and no repository is named, it cannot be had, or it is not whole.
    """
    if path.exists():
        model = inspect_model(path)  # one that is not whole is refused here: nothing of the user's is written over
        return f"model: {path}, {gib(model.bytes)}, is there"
    if repository is None:
        raise ModelError(f"model directory {path} does not exist", rule="a run starts from a directory",
                         fix="add --model OWNER/NAME: it is fetched from the hub into model.path")
    _download(path, repository, revision)
    return f"model: {repository} into {path}, {gib(inspect_model(path).bytes)}"


def _download(path: Path, repository: str, revision: str | None) -> None:
    """In a process of its own; the directory appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # kept when it breaks off: the next try goes on from there
    command = (sys.executable, "-m", "siri_megatron.launch.prefetch", "model", repository, revision or "", str(part))
    done = _child(command, dict(os.environ), MODEL_LIMIT_S)
    if done:
        raise ModelError(f"model {repository} cannot be had: {done}", rule="it is a repository of the Hugging Face hub",
                         fix="check name, network, HF_TOKEN and proxy variables; or copy the directory to "
                             f"{path} from a machine that has it")
    os.rename(part, path)


def hub_tables(config: RunConfig) -> Iterator[DatasetConfig]:
    """Every data set of the hub that the run reads, once."""
    own = [config.data.train, config.data.eval if config.evaluation.problems else None]
    named = [*own, *(suite.data for suite in config.evaluation.suites)] if config.data.source == "dataset" else \
        [suite.data for suite in config.evaluation.suites]
    seen = []
    for table in named:
        full = table.resolved() if table is not None else None
        if full is not None and full.on_hub and full not in seen:
            seen.append(full)
            yield full


def fetched_table(table: DatasetConfig, timeout_s: float) -> str:
    """A data set, by the code that the run reads it with; returns what to say. Raises DataError if it cannot be had."""
    from siri_megatron.data.hub import read_hub

    rows = sum(1 for _ in read_hub(table, timeout_s=timeout_s, offline=False))
    return f"data: {table.path}, split {table.split}: {rows} rows, {gib(_cached(str(table.path)))} in the cache"


def _cached(name: str) -> int:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and not file.is_symlink())


def proof(config: RunConfig) -> str:
    """Load everything without a hub; returns what to say.

    Raises:
        DataError: something is missing still; says what.
    """
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory(prefix="siri-prefetch-") as place:
        configs.save(config, Path(place) / "config.yaml")
        command = (sys.executable, "-m", "siri_megatron.launch.prefetch", "proof", str(Path(place) / "config.yaml"))
        without = {name: value for name, value in os.environ.items() if name not in PROXIES}
        done = _child(command, without | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOBODY}, PROOF_LIMIT_S)
    if done:
        raise DataError(f"without network it does not load: {done}", rule="compute nodes load from model.path and "
                        f"HF_HOME={constants.HF_HOME} alone", fix="fetch again; local paths must be on a shared disk")
    return (f"proved: a process without network loads model, tokenizer and prompts. Give the job "
            f"HF_HOME={constants.HF_HOME} (on a file system that the compute nodes share) and HF_HUB_OFFLINE=1")


def _child(command: tuple[str, ...], environment: dict[str, str], limit_s: float) -> str:
    """Run a part of this module; returns why it failed, empty if it did not."""
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    try:
        done = subprocess.run(command, env=environment | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {limit_s:g} s"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return (said[-1][:500] if said else f"exit status {done.returncode}") if done.returncode else ""


def _fetch_model(repository: str, revision: str, part: str) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=revision or None, local_dir=part, allow_patterns=list(MODEL_FILES))


def _prove(file: str) -> None:
    """What a run looks at before it starts, offline."""
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import suite_prompts, train_prompts

    config = configs.load(Path(file))
    inspect_model(config.model.path)
    codec = TextCodec.load(config.model.path)
    train_prompts(config.data, codec, offline=True)
    suite_prompts(config, codec, offline=True)


if __name__ == "__main__":
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}".replace("\n", " "), file=sys.stderr)
    if sys.argv[1] == "model":
        _fetch_model(*sys.argv[2:])
    else:
        _prove(*sys.argv[2:])
