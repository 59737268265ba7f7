"""What a weight push costs: `python tools/bench/push.py [SIZE ...]` (3m, 30m, 200m: megabytes of float32 weights).

The push of a run (`WeightPush`) to one and to two real engines, over shared memory and over gloo, from a learner of one
rank, whose export hands out its weights uncopied. Beside it the same bytes are

    copied in memory       into a buffer that is there already (the fastest that a copy can be)
    copied as a file       from one file in /dev/shm into a new one there

Prints seconds (median of ROUNDS, after one that warms up), ratios to both copies, and where the time goes. Target: at
most 3 times the file copy for shm at 200 MB; aim 1.5. Engines hold every tensor twice on their way (vLLM copies it into
a new parameter and packs that), so one engine costs two more copies than a file, on another core.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from live_fleet import live_fleet

from siri_megatron.config import RunConfig, validate
from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir
from siri_megatron.weights.fleet_client import FleetClient
from siri_megatron.weights.push import WeightPush

SIZES: dict[str, dict[str, int]] = {
    "3m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "30m": {"hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 6, "num_attention_heads": 10},
    "200m": {"hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 7, "num_attention_heads": 12}}
ROUNDS = 7
TARGET = 3.0
PHASES = ("start", "update", "finish", "reset_prefix_cache", "assert_version")


class Held:
    """A learner that holds a model whole."""

    is_rank0 = True

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
        self.bytes = sum(tensor.nbytes for tensor in self.tensors.values())

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()


def write_model(path: Path, size: str) -> Held:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, write_tokenizer

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=512, **SIZES[size], num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID))
    model.save_pretrained(path)
    write_tokenizer(path)
    return Held(model)


def config(place: Path) -> RunConfig:
    return validate({"name": "push", "runs_dir": str(place / "runs"), "model": {"path": str(place / "model")},
                     "budget": {"l_min": 16, "l_max": 64, "cycle_steps": 2, "cycles": 1}, "optimizer": {"lr": 1e-3},
                     "rollout": {"budget_grid": [32, 64]}, "evaluation": {"budgets": [64]},
                     "learner": {"pin_cores": True},
                     "engines": {"count": 2, "kv_cache_gib": 0.125, "max_num_seqs": 16}}, "the benchmark")


def median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def copies(learner: Held) -> tuple[float, float]:
    """Seconds of copying the weights in memory, and as a file in /dev/shm."""
    source = torch.cat([tensor.reshape(-1) for tensor in learner.tensors.values()])
    there = torch.empty_like(source)
    in_memory = median(lambda: there.copy_(source))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        here, other = Path(directory, "a"), Path(directory, "b")
        here.write_bytes(source.numpy().tobytes())

        def copy() -> None:
            other.unlink(missing_ok=True)
            shutil.copyfile(here, other)

        return in_memory, median(copy)


def timed_phases(seconds: Counter[str]) -> None:
    """Add up what each request of the client takes."""
    def timed(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: FleetClient, *args: Any) -> Any:
            began = time.perf_counter()
            answer = call(self, *args)
            seconds[phase] += time.perf_counter() - began
            return answer
        return run

    for phase in PHASES:
        setattr(FleetClient, phase, timed(phase, getattr(FleetClient, phase)))


def measure(given: RunConfig, learner: Held, backend: str, seconds: Counter[str]) -> float:
    push = WeightPush(given.model_copy(update={"push": given.push.model_copy(update={"backend": backend})}),
                      RunDir(given.run_dir), learner, lambda _, decide: decide())
    versions = iter(range(1000))
    push.push("warm")
    seconds.clear()
    took = median(lambda: push.push(f"{backend}-{next(versions)}"))
    push.close()
    return took


def bench(size: str, seconds: Counter[str]) -> float:
    """Ratio of the shm push to one engine to a file copy."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        learner = write_model(place / "model", size)
        given = config(place)
        with live_fleet(given, (0, 1)) as fleet:
            in_memory, as_file = copies(learner)
            print(f"{size}: {learner.bytes / 1e6:.1f} MB; copied in memory {in_memory * 1e3:.1f} ms, "
                  f"as a file {as_file * 1e3:.1f} ms", flush=True)
            whole = read_json(fleet.paths.fleet)
            assert whole is not None
            ratios = {}
            for count in (1, 2):
                write_json(fleet.paths.fleet, whole | {"epoch": 10 + count, "engines": whole["engines"][:count]})
                for backend in ("shm", "gloo"):
                    took = measure(given, learner, backend, seconds)
                    ratios[backend, count] = took / as_file
                    parts = ", ".join(f"{phase} {seconds[phase] / (ROUNDS + 1) * 1e3:.0f}" for phase in PHASES)
                    print(f"  {backend} to {count} engine(s): {took * 1e3:.0f} ms = {took / as_file:.2f} x the file "
                          f"copy, {took / in_memory:.1f} x the copy in memory (ms: {parts})", flush=True)
        return ratios["shm", 1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", choices=[[], *SIZES], metavar="SIZE", help=", ".join(SIZES))
    sizes = parser.parse_args(argv).sizes
    torch.set_num_threads(1)
    seconds: Counter[str] = Counter()
    timed_phases(seconds)
    ratios = {size: bench(size, seconds) for size in sizes or SIZES}
    largest = ratios.get("200m")
    if largest is not None:
        print(f"shm, 200 MB, one engine: {largest:.2f} x the file copy (target: at most {TARGET:g})")
    return int(largest is not None and largest > TARGET)


if __name__ == "__main__":
    sys.exit(main())
