"""Peak memory and time of log-probs with entropy, forward and backward: `tools/bench/logprobs.py [TOKENS COLUMNS]`.

Each measurement is a process of its own. Prints peak and time of all tokens at once in float32 and of the learner's
chunks, what the logits and their gradient alone take, and the ratio. With `--one TOKENS COLUMNS CHUNK` it measures one
size and prints a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

WHOLE = 1 << 40


def measure(tokens: int, columns: int, chunk: int) -> dict[str, float]:
    """{"mib": peak beyond what the imports hold, "s": forward and backward} for bf16 logits, in this process."""
    import torch
    import torch.distributed as dist

    from siri_megatron.learner.logprobs import token_logprobs

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def run(tokens: int) -> float:
        torch.manual_seed(0)
        logits = torch.empty(1, tokens, columns, dtype=torch.bfloat16).normal_().requires_grad_()
        labels = torch.randint(columns, (1, tokens))
        start = time.perf_counter()
        logprobs, _ = token_logprobs(logits, labels, temperature=1.0, vocab=columns, group=dist.group.WORLD,
                                     chunk=chunk)
        logprobs.sum().backward()
        return time.perf_counter() - start

    run(1)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = peak_mib()
    seconds = run(tokens)
    return {"mib": peak_mib() - before, "s": seconds}


def peak_mib() -> float:
    """High-water mark of this process's memory. Not ru_maxrss, which a child inherits from a large parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure_apart(tokens: int, columns: int, chunk: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", *map(str, (tokens, columns, chunk))]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True,
                                                        timeout=600).stdout)
    return found


def main(tokens: int = 2048, columns: int = 151936) -> None:
    from siri_megatron.learner.logprobs import CHUNK
    whole, chunked = (measure_apart(tokens, columns, chunk) for chunk in (WHOLE, CHUNK))
    least = 2 * tokens * columns * 2 / 2**20
    print(f"{tokens} tokens x {columns} columns, bf16 logits, {CHUNK:,} entries a chunk")
    for name, one in (("whole", whole), ("chunked", chunked)):
        print(f"  {name:8} peak {one['mib']:8.0f} MiB   {one['s']:6.2f} s")
    print(f"  logits and their gradient alone {least:.0f} MiB")
    print(f"chunked/whole: memory {chunked['mib'] / whole['mib']:.2f}, time {chunked['s'] / whole['s']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*map(int, sys.argv[2:5]))))
    else:
        main(*map(int, sys.argv[1:3]))
