"""Fleet tokens/s over those of bare vLLM: `python tools/bench/fleet.py [--caps 64 128 512] [--rounds 3] [--seeded]`.

One run, two sides, one engine a core on the same cores, taking turns:

    fleet   engines and collector as `siri train` starts them, asked for a step as learner rank 0 asks: HTTP, log-probs,
            verification and the ledger are in the time
    bare    `vllm.LLM.generate` in a process a core, given the prompts that the engine on that core was given

Prompts, samples a prompt, cap, log-probs, context and KV cache are equal; --seeded gives every sample a seed of its
own on both sides, and then the tokens must be equal too. The figure of a cap is the median over the rounds of
(fleet tokens/s) / (bare tokens/s), neighbours in time compared. Target: 0.9 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
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
class Round:
    """One step on either side: tokens and seconds."""

    tokens: int
    fleet_s: float
    generation_s: float
    bare_tokens: int
    bare_s: float

    @property
    def ratio(self) -> float:
        return (self.tokens / self.fleet_s) / (self.bare_tokens / self.bare_s)


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


def measure(fleet: LiveFleet, bare: Bare, cap: int, rounds: int, first_step: int, stop_ids: Sequence[int]) -> list[Round]:
    """Rounds at a cap, after one small warm-up of both sides. Each side goes first in every other round."""
    found, jobs, step = [], _jobs(fleet, ask(fleet, first_step, WARM_CAP)[0], stop_ids), first_step + 1
    bare.generate(jobs)
    for at in range(rounds):
        jobs = [job | {"cap": cap} for job in jobs]
        if at % 2:
            answers = bare.generate(jobs)
            rows, seconds, generation = ask(fleet, step, cap)
        else:
            rows, seconds, generation = ask(fleet, step, cap)
            jobs = _jobs(fleet, rows, stop_ids)
            answers = bare.generate(jobs)
            check_equal(fleet, jobs, answers)
        step += 1
        found.append(Round(sum(len(row.response_ids) for row in rows), seconds, generation,
                           sum(len(sample) for answer in answers for sample in answer["samples"]),
                           max(answer["seconds"] for answer in answers)))
    return found


def check_equal(fleet: LiveFleet, jobs: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> None:
    """With seeds both sides have sampled the same tokens, or the comparison is none."""
    if fleet.config.reproducible:
        for job, answer in zip(jobs, answers, strict=True):
            assert job["expected"] == answer["samples"], "fleet and bare vLLM sampled other tokens from the same seeds"


def _jobs(fleet: LiveFleet, rows: Sequence[Rollout], stop_ids: Sequence[int]) -> list[Any]:
    config = fleet.config
    return jobs_of(rows, engines=config.engines.count, stop_ids=stop_ids,
                   run_seed=config.seed if config.reproducible else None)


def ask(fleet: LiveFleet, step: int, cap: int) -> tuple[list[Rollout], float, float]:
    """One step of the fleet: its rows, the seconds of it, and those until the last engine had answered."""
    import time

    begun = time.perf_counter()
    stats = fleet.client.collect(StepBudget(step, 0, "compression", cap, 1), "0", timeout_s=STEP_S)
    seconds = time.perf_counter() - begun
    rows = open_step(fleet.paths.ledger, step)
    return [rows.rollout(row) for row in range(len(rows))], seconds, stats["generation_s"]


def line(cap: int, rounds: Sequence[Round]) -> str:
    fleet, bare = (statistics.median(values) for values in zip(
        *((at.tokens / at.fleet_s, at.bare_tokens / at.bare_s) for at in rounds), strict=True))
    generating = statistics.median(at.tokens / at.generation_s for at in rounds)
    ratio = statistics.median(at.ratio for at in rounds)
    return (f"cap {cap:4}: fleet {fleet:7.0f} tokens/s (until the last answer {generating:7.0f}), bare {bare:7.0f}; "
            f"ratio {ratio:.2f} (target >= {TARGET}), rounds {', '.join(f'{at.ratio:.2f}' for at in rounds)}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--rounds", type=int, default=3)
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
            before = fleet.cpu_seconds()
            rounds = measure(fleet, bare, at, options.rounds, 1000 * number, stop_ids)
            after = fleet.cpu_seconds()
            print(line(at, rounds), flush=True)
            print("   ", {k: round((v - before.get(k, 0)) / sum(r.tokens for r in rounds) * 1e6, 1) for k, v in after.items()}, "us CPU a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
