"""Entry of a learner in `siri sft`: `python -m siri_megatron.learner.sft_main RUN_DIR --rank R --world W`.

A supervised warm start with the same learner as in reinforcement learning: batches are a pure function of the step, so
every rank makes its own and nothing is sent around.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from siri_megatron.launch.lastwords import guarded_main
from siri_megatron.learner.main import parse
from siri_megatron.paths import RunDir
from siri_megatron.sft_config import SftConfig, load_sft

if TYPE_CHECKING:
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.learner import Learner


def run_rank(paths: RunDir, rank: int, world: int) -> None:
    """Initialise (rank 0 writes the starting model), train through all stages, export."""
    from siri_megatron.checkpoint.hf_export import export_hf  # heavy: torch and megatron
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.learner import Learner
    from siri_megatron.learner.runtime import megatron_runtime
    from siri_megatron.learner.settings import LearnerSettings

    config = load_sft(paths.config)
    control = ControlPlane.open(paths, rank, world, config.learner)
    with control, megatron_runtime():
        start = starting_model(config, paths, control)
        learner = Learner(LearnerSettings.of_sft(config, start), control)
        train(config, paths, learner)
        export_hf(learner, start, config.output)
        learner.close()


def starting_model(config: SftConfig, paths: RunDir, control: ControlPlane) -> Path:
    """The directory to start from; rank 0 writes it first if the model starts from random weights."""
    if config.model_path:
        return config.model_path
    path = paths.root / "initial"
    if control.rank == 0:
        from siri_megatron.learner.init_model import build_initial_model
        build_initial_model(config, path)
        control.publish("initial-model", str(path))
    else:
        control.receive("initial-model")
    return path


def train(config: SftConfig, paths: RunDir, learner: Learner) -> None:
    """All steps; rank 0 notes the loss every `log_every` steps."""
    from siri_megatron.data.sft_batches import sft_batch
    from siri_megatron.observe.events import EventLog
    from siri_megatron.observe.metrics import METRICS, MetricsWriter

    events, writer = EventLog(paths.events), MetricsWriter(paths.metrics)
    began, tokens = time.monotonic(), 0.0
    for step in range(config.steps):
        batch = sft_batch(config, step)
        metrics = learner.sft_step([(s.prompt_ids, s.response_ids, s.token_weights) for s in batch.sequences], batch.lr)
        tokens += metrics["train_tokens"]
        if learner.is_rank0:
            known = {key: value for key, value in metrics.items() if key in METRICS}
            writer.write({"step": step, **known, "training_s": metrics["train_s"]})
        if learner.is_rank0 and ((step + 1) % config.log_every == 0 or step + 1 == config.steps):
            speed = tokens / (time.monotonic() - began)
            events.write("sft", step, teacher=config.stages[batch.stage].teacher, loss=metrics["loss"], lr=batch.lr,
                         tokens_per_s=speed, message=f"{step + 1}/{config.steps} {config.stages[batch.stage].teacher}: "
                         f"loss {metrics['loss']:.4f}, {speed:,.0f} tokens/s")


if __name__ == "__main__":
    arguments = parse()
    run_dir = RunDir(arguments.run_dir)
    guarded_main(f"learner-{arguments.rank}", run_dir, lambda: run_rank(run_dir, arguments.rank, arguments.world))
