"""Whole steps against TRL: `python tools/bench/trl.py [--caps 128 512] [--steps 4]`.

The same job on both sides, one after the other on the same two cores: GRPO in float32 on a randomly initialised Qwen2
of 0.8M parameters, 32 prompts of 8 samples, one optimizer step each, no KL, nothing dropped. The vocabulary follows the
cap so that a quarter of the samples reaches it and their median length is half of it.

    ours   `siri train configs/bench-0.8m.yaml`: two vLLM engines and two data-parallel learners that take turns;
           generation, verification, planning, training, push and ledger are in a step
    TRL    GRPOTrainer with transformers' generate (KV cache, SDPA), in an environment of its own that is made at the
           first use (.trl/: TRL and accelerate; torch and transformers are the project's own), without gradient
           checkpointing. Both ways to use two cores are tried at the first cap (one process with two threads; two
           data-parallel processes), and the faster one is taken

The figure of a cap is sampled tokens a second of whole steps, the median over the steps after warm-up, and its ratio.
Targets: 1.5 or more at cap 128, aim for 2; 4 at cap 512.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import half_the_cap, write_bench_model

from siri_megatron import config as configs
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import train_prompts
from siri_megatron.launch.ports import PortHolder
from siri_megatron.observe import jsonl

CONFIG = Path("configs/bench-0.8m.yaml")
PLACE = Path(".trl")
PACKAGES = ("trl==1.16.0", "accelerate==1.15.0")
"""All that TRL needs beyond the project's own environment, which it sees through a .pth file."""
TARGETS = {128: 1.5, 512: 4.0}
WARM_UP = 1
CORES = 2
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Setting:
    """A way to run TRL on two cores."""

    name: str
    ranks: int
    threads: int
    batch: int
    """Samples of a forward and backward pass, a rank."""


SETTINGS = (Setting("one process, two threads", 1, 2, 64), Setting("two processes", 2, 1, 64))


@dataclass(frozen=True)
class Timed:
    """A step."""

    tokens: int
    seconds: float

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def median_speed(steps: Sequence[Timed], warm_up: int = WARM_UP) -> float:
    """Sampled tokens a second.

    Raises:
        ValueError: no step is left after warm-up.
    """
    if len(steps) <= warm_up:
        raise ValueError(f"{len(steps)} steps, of which {warm_up} warm up: none is left")
    return statistics.median(step.speed for step in steps[warm_up:])


def steps_of_metrics(records: Iterable[Mapping[str, Any]]) -> list[Timed]:
    """Ours: as metrics.jsonl tells."""
    return [Timed(int(record["tokens"]), float(record["step_s"])) for record in records]


def steps_of_ranks(ranks: Sequence[Sequence[Mapping[str, Any]]]) -> list[Timed]:
    """TRL's: a step takes as long as its slowest rank, and has the tokens of all."""
    return [Timed(sum(int(one["tokens"]) for one in step), max(float(one["seconds"]) for one in step))
            for step in zip(*ranks, strict=True)]


def overrides(cap: int, steps: int, model: Path) -> list[str]:
    """Of the config, on our side."""
    return [f"name=bench-trl-{cap}", f"model.path={model}", f"budget.l_max={cap}", f"budget.l_min={cap}",
            f"budget.cycle_steps={steps + steps % 2}", f"evaluation.budgets=[{cap}]", f"rollout.budget_grid=[{cap}]",
            f"checkpoint.every_steps={steps + steps % 2}", "algorithm.mini_batches=1", "learner.pp=1", "learner.dp=2"]


def ours(cap: int, steps: int, model: Path, extra: Sequence[str]) -> list[Timed]:
    """One run of the whole stack."""
    config = configs.load(CONFIG, [*overrides(cap, steps, model), *extra])
    subprocess.run([str(Path(sys.executable).parent / "siri"), "train", str(CONFIG), "--fresh",
                    *overrides(cap, steps, model), *extra], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    return steps_of_metrics(jsonl.read(config.run_dir / "metrics.jsonl"))


def trl(cap: int, steps: int, model: Path, setting: Setting, cores: Sequence[int]) -> list[Timed]:
    """One run of GRPOTrainer."""
    config = configs.load(CONFIG, overrides(cap, steps, model))
    prompts = train_prompts(config.data, TextCodec.load(model), offline=True)
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as name, PortHolder("127.0.0.1", 0, 1) as held:
        place = Path(name)
        job = {"model": str(model.absolute()), "out": str(place / "steps"), "cap": cap, "steps": steps,
               "lr": config.optimizer.lr, "samples": config.rollout.samples_per_prompt,
               "prompts_per_step": config.rollout.prompts_per_step, "ranks": setting.ranks, "batch": setting.batch,
               "threads": setting.threads,
               "prompts": [{"prompt": prompt.text, "answer": prompt.answer} for prompt in prompts[:4096]]}
        (place / "job.json").write_text(json.dumps(job))
        _run_ranks(place, setting, cores, held.ports[0])
        return steps_of_ranks([jsonl.read(place / f"steps.{rank}") for rank in range(setting.ranks)])


def _run_ranks(place: Path, setting: Setting, cores: Sequence[int], port: int) -> None:
    argv = [str(PLACE / "bin" / "python"), "-W", "ignore", "-P", str(Path(__file__).with_name("trl_side.py")),
            str(place / "job.json")]
    common = os.environ | {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo",
                           "TOKENIZERS_PARALLELISM": "false"}
    started = []
    log = place / "log"
    try:
        with log.open("wb") as file:
            for rank in range(setting.ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(setting.ranks),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if setting.ranks > 1 else {}
                mine = cores[rank:rank + 1] if setting.ranks > 1 else cores
                started.append(subprocess.Popen(["taskset", "-c", ",".join(map(str, mine)), *argv], env=common | own,
                                                stdin=subprocess.DEVNULL, stdout=file, stderr=file))
        for process in started:
            if process.wait(timeout=LIMIT_S) != 0:
                raise RuntimeError(f"TRL ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    finally:
        for process in started:
            process.kill()
            process.wait()


def make_environment() -> None:
    """The environment of TRL, if it is not there: packages of its own, and the project's."""
    if (PLACE / "ready").exists():
        return
    shutil.rmtree(PLACE, ignore_errors=True)
    venv.create(PLACE, with_pip=False, symlinks=True)
    python = PLACE / "bin" / "python"
    site = next(PLACE.glob("lib/python*/site-packages"))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install",
                    "-q", "--no-deps", *PACKAGES], check=True, timeout=LIMIT_S)
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (PLACE / "ready").touch()


def line(cap: int, own: float, other: float, setting: Setting) -> str:
    target = f" (target >= {TARGETS[cap]:g})" if cap in TARGETS else ""
    return (f"cap {cap}: {own:,.0f} sampled tokens/s of whole steps, TRL {other:,.0f} ({setting.name}); "
            f"ratio {own / other:.2f}{target}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=6, help="of our side, the first one to warm up")
    parser.add_argument("--trl-steps", type=int, default=3, help="of TRL, the first one to warm up")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="of our config")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # every process below keeps to them
    make_environment()
    settings: Sequence[Setting] = SETTINGS
    for cap in options.caps:
        model = Path(f"runs/bench-model-trl-{cap}")
        write_bench_model(model, vocabulary=half_the_cap(cap))
        own = median_speed(ours(cap, options.steps, model, options.override))
        speeds = {setting: median_speed(trl(cap, options.trl_steps, model, setting, cores)) for setting in settings}
        best = max(speeds, key=speeds.__getitem__)
        if len(settings) > 1:
            print(f"TRL at cap {cap}: " + ", ".join(f"{at.name} {speed:,.0f} tokens/s" for at, speed in speeds.items()))
        settings = (best,)
        print(line(cap, own, speeds[best], best), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
