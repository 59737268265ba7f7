"""Fleet tokens/s over those of bare vLLM: `python tools/bench/fleet.py [--caps 64 128 512] [--rounds 4] [--seeded]`.

One run, two sides, one engine a core on the same cores, taking turns:

    fleet   engines and collector as `siri train` starts them, asked for a step as learner rank 0 asks: HTTP, log-probs,
            verification and the ledger are in the time
    bare    `vllm.LLM.generate` in a process a core, given the prompts that the engine on that core was given

Prompts, samples a prompt, cap, log-probs, context and KV cache are equal; --seeded gives every sample a seed of its
own on both sides, and then the tokens must be equal too. The figure of a cap is the median over the rounds of
(fleet tokens/s) / (bare tokens/s), neighbours in time compared. Target: 0.9 or more. Beside it, for a machine that has
other work: the same ratio of CPU seconds a token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from live_fleet import LiveFleet, live_fleet
from model import write_bench_model

from siri_megatron import config as configs
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.data.codec import TextCodec
from siri_megatron.ledger.read import open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.rollout.sampling import request_seed

CONFIG = Path("configs/bench-0.8m.yaml")
TARGET = 0.9
WARM_CAP = 16
STEP_S = 600.0


@dataclass(frozen=True)
class Side:
    """What a step took."""

    tokens: int
    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Round:
    """One step on either side."""

    fleet: Side
    bare: Side

    @property
    def ratio(self) -> float:
        """Of tokens a second."""
        return (self.fleet.tokens / self.fleet.seconds) / (self.bare.tokens / self.bare.seconds)

    @property
    def cpu_ratio(self) -> float:
        """Of tokens a CPU second."""
        return (self.fleet.tokens / self.fleet.cpu_s) / (self.bare.tokens / self.bare.cpu_s)


class Bare:
    """Bare engines, one a core."""

    def __init__(self, config: configs.RunConfig, cores: Sequence[int], stack: ExitStack) -> None:
        self._processes = [stack.enter_context(_bare(config, core)) for core in cores]
        for process in self._processes:
            _answer(process)

    def generate(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All jobs at the same time, one an engine."""
        for process, job in zip(self._processes, jobs, strict=True):
            stdin = cast("IO[str]", process.stdin)
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
        return [_answer(process) for process in self._processes]


@contextmanager
def _bare(config: configs.RunConfig, core: int) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1",
                                "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    numbers = config.max_model_len, config.engines.max_num_seqs, int(config.engines.kv_cache_gib * 2**30)
    argv = ["taskset", "-c", str(core), sys.executable, str(Path(__file__).with_name("bare_vllm.py")),
            str(config.model.path), *map(str, numbers)]
    with open(config.run_dir / f"bare-{core}.log", "w") as log:
        process = subprocess.Popen(argv, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = cast("IO[str]", process.stdout).readline()
    if not line:
        raise RuntimeError("a bare engine ended; read runs/bench-fleet/bare-*.log")
    answer: dict[str, Any] = json.loads(line)
    return answer


def jobs_of(rows: Sequence[Rollout], *, engines: int, stop_ids: Sequence[int], run_seed: int | None) -> list[Any]:
    """What each engine of the fleet was given in a step, as jobs of bare ones. run_seed: None if nothing has a seed."""
    jobs: list[dict[str, Any]] = [{"prompts": [], "seeds": [], "expected": [], "stop_ids": list(stop_ids)}
                                  for _ in range(engines)]
    for row in rows:
        job = jobs[row.engine]
        job["expected"].append(row.response_ids)
        if row.sample == 0:
            job["prompts"].append(row.prompt_ids)
            job["seeds"].append(None if run_seed is None
                                else request_seed(run_seed, f"step-{row.step}", row.group, row.prompt_id))
        job |= {"n": row.sample + 1, "cap": row.cap}
    return jobs


def measure(fleet: LiveFleet, bare: Bare, cap: int, rounds: int, first_step: int,
            stop_ids: Sequence[int]) -> list[Round]:
    """Rounds at a cap, after one small warm-up of both sides. Each side goes first in every other round."""
    jobs = _jobs(fleet, ask(fleet, first_step, WARM_CAP)[0], stop_ids)
    bare.generate(jobs)
    found = []
    for step in range(first_step + 1, first_step + 1 + rounds):
        if step % 2:
            other = _bare_side(bare.generate([job | {"cap": cap} for job in jobs]))
        rows, own = ask(fleet, step, cap)
        if not step % 2:
            jobs = _jobs(fleet, rows, stop_ids)
            answers = bare.generate(jobs)
            other = _bare_side(answers)
            check_equal(fleet, jobs, answers)
        found.append(Round(own, other))
    return found


def _bare_side(answers: Sequence[dict[str, Any]]) -> Side:
    return Side(sum(len(sample) for answer in answers for sample in answer["samples"]),
                max(answer["seconds"] for answer in answers), sum(answer["cpu_s"] for answer in answers))


def check_equal(fleet: LiveFleet, jobs: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> None:
    """With seeds both sides have sampled the same tokens, or the comparison is none."""
    if fleet.config.reproducible:
        for job, answer in zip(jobs, answers, strict=True):
            assert job["expected"] == answer["samples"], "fleet and bare vLLM sampled other tokens from the same seeds"


def _jobs(fleet: LiveFleet, rows: Sequence[Rollout], stop_ids: Sequence[int]) -> list[Any]:
    config = fleet.config
    return jobs_of(rows, engines=config.engines.count, stop_ids=stop_ids,
                   run_seed=config.seed if config.reproducible else None)


def ask(fleet: LiveFleet, step: int, cap: int) -> tuple[list[Rollout], Side]:
    """One step of the fleet."""
    begun, cpu = time.perf_counter(), fleet.cpu_seconds()
    fleet.client.collect(StepBudget(step, 0, "compression", cap, 1), "0", timeout_s=STEP_S)
    seconds, cpu = time.perf_counter() - begun, fleet.cpu_seconds() - cpu
    rows = open_step(fleet.paths.ledger, step)
    found = [rows.rollout(row) for row in range(len(rows))]
    return found, Side(sum(len(row.response_ids) for row in found), seconds, cpu)


def line(cap: int, rounds: Sequence[Round]) -> str:
    fleet = statistics.median(at.fleet.tokens / at.fleet.seconds for at in rounds)
    bare = statistics.median(at.bare.tokens / at.bare.seconds for at in rounds)
    ratio, cpu = statistics.median(at.ratio for at in rounds), statistics.median(at.cpu_ratio for at in rounds)
    return (f"cap {cap:4}: fleet {fleet:7,.0f} tokens/s, bare {bare:7,.0f}; ratio {ratio:.2f} (target >= {TARGET}), "
            f"of CPU time {cpu:.2f}; rounds {', '.join(f'{at.ratio:.2f}' for at in rounds)}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeded", action="store_true", help="a seed a sample, as with reproducible: true")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    write_bench_model(Path("runs/bench-model"))
    cap = max(options.caps)
    config = configs.load(CONFIG, [
        "name=bench-fleet", f"budget.l_max={cap}", f"budget.l_min={cap}", f"evaluation.budgets=[{cap}]",
        f"rollout.budget_grid=[{cap}]", f"reproducible={str(options.seeded).lower()}", *options.override])
    cores = tuple(sorted(os.sched_getaffinity(0)))[:config.engines.count]
    stop_ids = TextCodec.load(config.model.path).stop_ids
    with live_fleet(config, cores) as fleet, ExitStack() as stack:
        bare = Bare(config, cores, stack)
        for number, at in enumerate(options.caps):
            print(line(at, measure(fleet, bare, at, options.rounds, 1000 * number, stop_ids)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
