"""The yardstick of the fleet's benchmark: `vllm.LLM.generate` in a process on one core, as one would write it by hand.

`python tools/bench/bare_vllm.py MODEL CONTEXT SEQUENCES KV_BYTES` reads one JSON job a line from its input (prompts,
samples a prompt, cap, seeds, stop ids) and answers with one line: the tokens that came, and the seconds and CPU seconds
that `generate` took. Settings as the engines have them: float32, eager, log-probs of the sampling distribution, no
tokenizer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def load(model: str, context: int, sequences: int, kv_bytes: int) -> Any:
    """One in-process engine."""
    from vllm import LLM

    return LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=context, max_num_seqs=sequences,
               kv_cache_memory_bytes=kv_bytes, skip_tokenizer_init=True, logprobs_mode="processed_logprobs",
               generation_config="vllm", disable_log_stats=True)


def generate(llm: Any, job: dict[str, Any]) -> dict[str, Any]:
    """All prompts of a job at once."""
    from vllm import SamplingParams

    sampling = [SamplingParams(n=job["n"], max_tokens=job["cap"], temperature=1.0, logprobs=0, detokenize=False,
                               stop_token_ids=job["stop_ids"], ignore_eos=True, seed=seed) for seed in job["seeds"]]
    begun, cpu = time.perf_counter(), time.process_time()
    answers = llm.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], sampling, use_tqdm=False)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    samples = [list(sample.token_ids) for answer in answers for sample in answer.outputs]
    return {"seconds": seconds, "cpu_s": cpu, "samples": samples}


def main(arguments: list[str]) -> None:
    model, *numbers = arguments
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints to stdout
    llm = load(model, *map(int, numbers))
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(generate(llm, json.loads(line))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
