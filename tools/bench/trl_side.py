"""One rank of TRL's GRPOTrainer, as its documentation sets it up on a CPU; `tools/bench/trl.py` starts it.

`.trl/bin/python -P tools/bench/trl_side.py JOB.json` (-P: a file beside this one is named like the package). Writes a
line a step to the job's `out`: the seconds from its beginning to its end, generation and training alike, and the
tokens that were sampled in it. The sampler's own time, rewards and logging are in; loading is not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Steps(TrainerCallback):
    """The clock of the steps, and the tokens of the one that runs."""

    def __init__(self, out: Path) -> None:
        self.out, self.tokens, self.begun = out, 0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.tokens, self.begun = 0, time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps({"seconds": time.perf_counter() - self.begun, "tokens": self.tokens}) + "\n")


def settings(job: dict[str, Any], out: str) -> GRPOConfig:
    """float32 like the other side; what only saves memory is off, since there is enough."""
    ranks = job["ranks"]
    return GRPOConfig(
        output_dir=out, use_cpu=True, bf16=False, gradient_checkpointing=False, seed=1, learning_rate=job["lr"],
        lr_scheduler_type="constant", max_steps=job["steps"], num_generations=job["samples"],
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=job["prompts_per_step"] * job["samples"] // (job["batch"] * ranks),
        max_completion_length=job["cap"], temperature=1.0, top_p=1.0, top_k=0, beta=0.0, loss_type="grpo",
        epsilon=0.2, epsilon_high=0.28, max_grad_norm=1.0, weight_decay=0.0, save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0)


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    steps = Steps(Path(job["out"]).with_suffix(f".{rank}"))

    def right(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        steps.tokens += sum(map(len, completion_ids))
        return [float(text.endswith(f"A{said}")) for text, said in zip(completions, answer, strict=True)]

    trainer = GRPOTrainer(model=model, reward_funcs=right, args=settings(job, str(path.parent / "trl")),
                          train_dataset=Dataset.from_list(job["prompts"]), processing_class=tokenizer,
                          callbacks=[steps])
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
