"""A recorded run that no engine has sampled: rollouts are drawn at random. What trains from a ledger can start here.

    python tools/made_ledger.py RUNS_DIR NAME [key=value ...]   a run of configs/tiny.yaml, with transformers' log-probs

With the log-probs of Hugging Face transformers (float32, one plain pass a response) in place of an engine's, a replay's
own metric `mismatch_mean_abs` says how far the learner is from transformers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.launch.model_files import inspect_model
from siri_megatron.launch.preflight import replace_fingerprint
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"
VOCABULARY = range(3, 12)
PROMPT = 8
LogProbs = Callable[[Sequence[int], Sequence[int]], list[float]]
"""(prompt, response) -> log-prob of each of its tokens."""


def record(overrides: Sequence[str], logprobs: LogProbs | None = None) -> Path:
    """The directory of a run of tiny.yaml. logprobs: none: all are -1."""
    config = configs.load(CONFIG, list(overrides))
    path = config.model.path if config.model.path.is_absolute() else CONFIG.parents[1] / config.model.path
    config = replace_fingerprint(config, inspect_model(path))
    paths = RunDir(config.run_dir)
    configs.save(config, paths.config)
    controller, draw = controller_of(config.budget, grid=config.rollout.budget_grid), random.Random(1)
    for step in range(controller.steps):
        budget = controller.budget(step)
        writer = StepWriter(paths.ledger, budget, "identity")
        for group in range(config.rollout.prompts_per_step):
            writer.append([_rollout(budget, group, sample, draw, logprobs)
                           for sample in range(config.rollout.samples_per_prompt)])
        writer.close()
    return paths.root


def _rollout(budget: StepBudget, group: int, sample: int, draw: random.Random, logprobs: LogProbs | None) -> Rollout:
    length = draw.randrange(4, budget.cap)
    right = draw.random() < 0.5
    prompt, response = draw.choices(VOCABULARY, k=PROMPT), draw.choices(VOCABULARY, k=length)
    return Rollout(step=budget.step, phase=budget.phase, cap=budget.cap, cap_version=budget.version, group=group,
                   sample=sample, prompt_id=f"p{group}", tier="t", answer="1", prompt_ids=prompt,
                   response_ids=response, logprobs=logprobs(prompt, response) if logprobs else [-1.0] * length,
                   finish_reason="stop", truncated=False, outcome="right" if right else "wrong", reward=float(right),
                   budget_rewards=[float(right)] * 5, engine=0, seconds=1.0,
                   spans=[{"version": "0", "start": 0, "end": length}])


def of_transformers(model_dir: Path) -> LogProbs:
    """What transformers says of a model's answers, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    @torch.no_grad()
    def logprobs(prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        table = model(torch.tensor([[*prompt, *response]])).logits[0].float().log_softmax(-1)
        places = torch.arange(len(response)) + len(prompt) - 1
        found: list[float] = table[places, torch.tensor(list(response))].tolist()
        return found

    return logprobs


if __name__ == "__main__":
    directory, name, *rest = sys.argv[1:]
    given = [f"runs_dir={directory}", f"name={name}", *rest]
    print(record(given, of_transformers(configs.load(CONFIG, given).model.path)))
