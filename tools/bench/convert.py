"""Conversion against a plain copy: `python tools/bench/convert.py [--layers N] [--repeats N] [--dir DIR]`.

Writes a random Qwen2 (0.8 GB in bf16 by default), then times, in turns, `hf-to-megatron`, `megatron-to-hf` (one rank
and TP2 x PP2) and `reshard` (TP2 x PP2 to one rank), each beside copying the files that it reads. Both fsync every
file, read from a warm page cache and start with nothing left to write back. Prints the median of the paired ratios;
target: 1.5, at most 3. Imports (`import torch`) are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from siri_megatron.convert.convert import Options, hf_to_megatron, megatron_to_hf, reshard
from siri_megatron.convert.output import check_space
from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import tensors

CONFIG = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 2048,
          "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 5504, "vocab_size": 32000,
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
          "torch_dtype": "bfloat16"}
TARGET = 3.0
OPTIONS = Options(force=True)


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-convert-") as name:
        place = Path(name)
        size = write_model(place / "hf", args.layers)
        cases: list[tuple[str, Path, Callable[[], object]]] = []
        for tp, pp in ((1, 1), (2, 2)):
            checkpoint = place / f"tp{tp}pp{pp}"
            to_megatron(place / "hf", checkpoint, tp, pp)
            cases += [(f"hf-to-megatron, tp={tp} pp={pp}", place / "hf",
                       lambda tp=tp, pp=pp: to_megatron(place / "hf", place / "out", tp, pp)),
                      (f"megatron-to-hf, tp={tp} pp={pp}", checkpoint,
                       lambda checkpoint=checkpoint: to_hf(checkpoint, place / "out"))]
        cases.append(("reshard, tp=2 pp=2 to 1 1", place / "tp2pp2",
                      lambda: reshard(place / "tp2pp2", place / "out", tp=1, pp=1, hf=None, options=OPTIONS,
                                      progress=silent)))
        return report(size, [(title, paired(source, place, convert, args.repeats)) for title, source, convert in cases])


def paired(source: Path, place: Path, convert: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """(seconds to convert, seconds to copy), taken in turns; every other time the copy goes first."""
    pairs = []
    for number in range(repeats):
        times = {}
        for side in ("convert", "copy") if number % 2 == 0 else ("copy", "convert"):
            times[side] = (timed(convert, place / "out") if side == "convert"
                           else timed(lambda: copy(source, place / "copy"), place / "copy"))
        pairs.append((times["convert"], times["copy"]))
    return pairs


def timed(action: Callable[[], object], made: Path) -> float:
    """Seconds; what was made is removed."""
    os.sync()
    start = time.perf_counter()
    action()
    took = time.perf_counter() - start
    shutil.rmtree(made)
    return took


def copy(source: Path, destination: Path) -> None:
    """Every file, fsynced."""
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())


def to_megatron(source: Path, destination: Path, tp: int, pp: int) -> None:
    hf_to_megatron(source, destination, tp=tp, pp=pp, options=OPTIONS, progress=silent)


def to_hf(source: Path, destination: Path) -> None:
    megatron_to_hf(source, destination, hf=None, options=OPTIONS, progress=silent)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _: None


def write_model(path: Path, layers: int) -> int:
    """Random weights; returns their bytes."""
    config = CONFIG | {"num_hidden_layers": layers}
    parts = tensors(Architecture.of(config))
    size = sum(torch.Size(part.shape).numel() for part in parts) * 2
    check_space(path, 6 * size)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({part.name: torch.randn(part.shape, dtype=torch.bfloat16) for part in parts}, path / "model.safetensors",
              metadata={"format": "pt"})
    return size


def report(size: int, results: list[tuple[str, list[tuple[float, float]]]]) -> int:
    table = Table(title=f"{size / 1e9:.2f} GB of weights in bf16, median of {len(results[0][1])} pairs")
    for column in ("conversion", "seconds", "copy", "ratio", "ratios"):
        table.add_column(column)
    worst = 0.0
    for title, pairs in results:
        ratios = sorted(converted / copied for converted, copied in pairs)
        ratio = statistics.median(ratios)
        worst = max(worst, ratio)
        table.add_row(title, f"{statistics.median(pair[0] for pair in pairs):.2f}",
                      f"{statistics.median(pair[1] for pair in pairs):.2f}", f"{ratio:.2f}",
                      " ".join(f"{item:.2f}" for item in ratios))
    Console(width=120).print(table)
    print(f"largest ratio {worst:.2f} (target 1.5, at most {TARGET})")
    return 0 if worst <= TARGET else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8, help="of 88 MB each (8)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write (the system's temporary directory)")
    sys.exit(main(parser.parse_args()))
