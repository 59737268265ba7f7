"""An estimate as JSON: everything that the tables show, and what they leave out. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.estimate.run import PhaseEstimate, Point, RunEstimate, gpu_hours
from siri_megatron.estimate.setup import Setup

FORMAT = 1


def document(run: RunEstimate) -> dict[str, Any]:
    """One run. Seconds, bytes and tokens as their names say; `modelled` parts were measured on no machine."""
    setup, config = run.setup, run.setup.config
    return {
        "format": FORMAT, "name": config.name,
        "model": {"path": str(config.model.path), "family": setup.arch.family, "dtype": config.model.dtype,
                  "parameters": model_parameters(setup.arch)},
        "machine": _machine(setup),
        "layout": config.learner.model_dump(mode="json", include={
            "tp", "pp", "dp", "cp", "vpp", "sequence_parallel", "recompute", "distributed_optimizer", "overlap"}),
        "engines": {"count": config.engines.count, "gpus_each": setup.engine_gpus,
                    "max_num_seqs": config.engines.max_num_seqs},
        "lengths": {"origin": setup.lengths.origin, "measured": setup.lengths.measured,
                    "prompt_tokens": setup.lengths.prompt, "kept_groups": [list(pair) for pair in setup.kept]},
        "modelled": {"seconds": setup.machine.rates.origin == "modelled", "memory": setup.spec == "te",
                     "lengths": not setup.lengths.measured},
        "caps": [_point(point) for point in run.points],
        "phases": [_phase(phase) for phase in run.phases],
        "cycles": [{"cycle": cycle, "seconds": seconds, "gpu_hours": gpu_hours(setup, seconds)}
                   for cycle, seconds in run.cycles.items()],
        "run": {"steps": sum(phase.steps for phase in run.phases), "start_s": run.start_s, "seconds": run.seconds,
                "gpu_hours": run.gpu_hours, "waiting": run.waiting, "bottleneck_turns_at_caps": run.turns_at},
        "misfits": list(run.misfits)}


def _machine(setup: Setup) -> dict[str, Any]:
    machine = setup.machine
    return {"rates": asdict(machine.rates), "gpu": machine.gpu and asdict(machine.gpu), "nodes": machine.nodes,
            "gpus_per_node": machine.gpus_per_node, "cores": machine.cores, "learners": setup.learners,
            "engine_gpus": setup.fleet_gpus, "paid_for": setup.devices}


def _point(point: Point) -> dict[str, Any]:
    room = point.room
    memory = {"learner": asdict(room.learner) | {"total": room.learner.total, "on_device": room.learner.on_device},
              "learner_stage": room.stage, "engine": asdict(room.engine) | {"total": room.engine.total},
              "kv_tokens": room.kv_tokens}
    return asdict(point.step) | {"widths": list(point.step.widths), "bottleneck": point.step.bottleneck,
                                 "memory": memory}


def _phase(phase: PhaseEstimate) -> dict[str, Any]:
    return asdict(phase) | {"steps": phase.steps, "micro_batches": list(phase.micro_batches),
                            "micro_batch_tokens": list(phase.micro_batch_tokens)}
