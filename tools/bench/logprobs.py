"""Peak memory and time of log-probs with entropy, forward and backward: `tools/bench/logprobs.py [TOKENS COLUMNS]`.

Each measurement is a process of its own (the peak of a process never falls). Prints one table: all tokens at once in
float32, in the chunks of the learner, and what the logits and their gradient alone take; and the ratio.
With `--one TOKENS COLUMNS CHUNK` it measures one size and prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

WHOLE = 1 << 40


def measure(tokens: int, columns: int, chunk: int) -> dict[str, float]:
    """{"mib": peak beyond the imports, "s": forward and backward} for bf16 logits, in this process."""
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
    before = peak()
    seconds = run(tokens)
    return {"mib": peak() - before, "s": seconds}


def peak() -> float:
    """High-water mark of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
