"""Rates of this machine out of the steps of a real run. Pure; reading and writing is the caller's.

    step of the ledger ─► the work that it was (the same formulas as an estimate's) ─┐
    seconds in metrics.jsonl ───────────────────────────────────────────────────────┴─► fit ─► Rates, Lengths, kept

Invariants:
- same_formulas: the work of a measured step is computed by what computes an estimate; with the fitted rates, the
  estimate of a measured step is the fit's own value.
- json_round_trip: `from_json(to_json())` is equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import kept_rows
from siri_megatron.errors import DataError
from siri_megatron.estimate.fit import fit_rates, relative_errors, survival_quantiles
from siri_megatron.estimate.generation import Request, decode
from siri_megatron.estimate.lengths import POINTS, Lengths
from siri_megatron.estimate.rates import Rates
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import evaluation_s, planned

ENGINE = ("round_s", "decode_flop_s", "sequence_s")
LEARNER = ("flop_s", "micro_batch_s", "optimizer_step_s")
"""Rates that a fit finds."""
CACHE = "context_byte_s"
"""Found on a GPU, too: there the KV cache is read at the pace of the memory, not of the processor."""
FEWEST = 6
"""Steps that a fit needs."""
FORMAT = 1
BEYOND = 2
"""x l_max: length of the responses of which is known only that they are longer than l_max."""


@dataclass(frozen=True)
class MeasuredStep:
    """One step of a run."""

    cap: int
    rows: RowLengths
    truncated: NDArray[np.bool_]
    """[n] the cap cut it."""
    engine: NDArray[np.int64]
    """[n] engine that sampled it."""
    seconds: Mapping[str, float]
    """generation, verification, planning, training, push, other."""


@dataclass(frozen=True)
class Calibration:
    """What was learnt from a run."""

    rates: Rates
    lengths: Lengths
    kept: tuple[tuple[int, float], ...]
    """(cap, share of groups that carried a signal), by cap."""
    machine: Mapping[str, Any]
    """Fingerprint of the machine that was measured."""
    key: Mapping[str, Any]
    """Model, layout and engines that were measured: others are extrapolated."""
    steps: int
    errors: Mapping[str, float]
    """Part of a step -> median of |estimate / measured - 1| over the fitted steps."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], origin: str) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            DataError: it is something else, or of another version.
        """
        try:
            if data["format"] != FORMAT:
                raise KeyError(f"format {data['format']}")
            kept = tuple((cap, share) for cap, share in data["kept"])
            lengths = {**data["lengths"], "quantiles": tuple(data["lengths"]["quantiles"])}
            return cls(Rates(**data["rates"]), Lengths(**lengths), kept, data["machine"], data["key"],
                       data["steps"], data["errors"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{origin} is no calibration of this version: {error}",
                            rule="a calibration is a file that `siri plan --calibrate` wrote",
                            fix="calibrate again, or remove the file") from None


def calibration_key(setup: Setup) -> dict[str, Any]:
    """What a calibration holds for without extrapolation. JSON."""
    config = setup.config
    layout = config.learner.model_dump(mode="json", include={"tp", "pp", "dp", "cp", "vpp", "sequence_parallel",
                                                             "recompute", "distributed_optimizer", "threads"})
    return {"model": asdict(setup.work), "dtype": config.model.dtype, "learner": layout,
            "engines": {"count": config.engines.count, "gpus": setup.engine_gpus}, "mode": config.batching.mode}


def calibrate(setup: Setup, steps: Sequence[MeasuredStep], outside: Mapping[str, Sequence[float]], *,
              machine: Mapping[str, Any]) -> Calibration:
    """Fit rates to measured steps.

    Args:
        setup: the run that was measured; its machine says how many cores or GPUs there were, its rates do not count.
        steps: in order; the first one warms up and is left out.
        outside: seconds of every `commit`, `export` and `evaluation`.
        machine: fingerprint; `cpu` and `cores` name it.

    Raises:
        DataError: there are too few steps.
    """
    steps = [step for step in steps[1:] if min(step.seconds["generation"], step.seconds["training"]) > 0]
    if len(steps) < FEWEST:
        raise DataError(f"{len(steps)} steps to calibrate from", rule=f"a calibration needs {FEWEST} steps that "
                        "generated and trained, beside the first", fix="calibrate from a longer run")
    engine, engine_error = _fit_engine(setup, steps)
    learner, learner_error = _fit_learner(setup, steps)
    spent = {kind: float(np.median(seconds)) for kind, seconds in outside.items() if seconds}
    rates = _rates(engine | learner | _beside(setup, steps, spent), str(machine["cpu"]))
    lengths = measured_lengths(steps, setup.config.budget.l_max)
    fitted = replace(setup, machine=replace(setup.machine, rates=rates), lengths=lengths)
    if "evaluation" in spent:
        rates = replace(rates, evaluation_s=max(0.0, spent["evaluation"] - evaluation_s(fitted)))
    kept = tuple((cap, float(np.mean([_kept(setup, step) for step in steps if step.cap == cap])))
                 for cap in sorted({step.cap for step in steps}))
    return Calibration(rates, lengths, kept, machine, calibration_key(setup), len(steps),
                       {"generation": engine_error, "training": learner_error})


def _beside(setup: Setup, steps: Sequence[MeasuredStep], spent: Mapping[str, float]) -> dict[str, float]:
    """Rates of what is neither generation nor training: medians."""
    return {"push_byte_s": _median(steps, "push") / setup.weight_bytes,
            "verification_s": _median(steps, "verification"),
            "overhead_s": _median(steps, "planning") + _median(steps, "other"),
            "commit_s": spent.get("commit", 0.0), "export_byte_s": spent.get("export", 0.0) / setup.weight_bytes}


def generation_work(setup: Setup, step: MeasuredStep) -> dict[str, float]:
    """Units of work of the busiest engine, by the name of their rate."""
    share = not setup.config.reproducible
    engines: dict[int, list[Request]] = {}
    seen: set[int] = set()
    columns = (step.engine, step.rows.group, step.rows.prompt, step.rows.response)
    for engine, group, prompt, response in zip(*(column.tolist() for column in columns), strict=True):
        engines.setdefault(engine, []).append(Request(prompt, response, cached=share and group in seen))
        seen.add(group)
    busiest = max(engines.values(), key=lambda requests: sum(request.response for request in requests))
    names = ENGINE if setup.machine.gpu is None else (*ENGINE, CACHE)
    units = {name: _unit(setup, name).decoding for name in names}
    places = setup.config.engines.max_num_seqs
    return {name: decode(busiest, costs, places=places).seconds for name, costs in units.items()}


def training_work(setup: Setup, step: MeasuredStep) -> dict[str, float]:
    """Units of work of the learners, by the name of their rate."""
    plan = planned(setup, step.rows, step.cap)
    units = {name: _unit(setup, name).pipeline for name in LEARNER}
    return {name: pipeline.step(plan, setup.config.algorithm).seconds for name, pipeline in units.items()}


def _unit(setup: Setup, name: str) -> Setup:
    """On a machine that takes one second for a unit of one kind of work, and none for any other."""
    return replace(setup, machine=replace(setup.machine, rates=_rates({name: 1.0}, "")))


def _rates(values: Mapping[str, float], machine: str) -> Rates:
    """Rates of which the others are zero."""
    zeros = dict.fromkeys((field.name for field in fields(Rates)[2:]), 0.0)
    return Rates("calibrated", machine, **(zeros | dict(values)))


def _fit_engine(setup: Setup, steps: Sequence[MeasuredStep]) -> tuple[dict[str, float], float]:
    return _fit([generation_work(setup, step) for step in steps], [step.seconds["generation"] for step in steps])


def _fit_learner(setup: Setup, steps: Sequence[MeasuredStep]) -> tuple[dict[str, float], float]:
    return _fit([training_work(setup, step) for step in steps], [step.seconds["training"] for step in steps])


def _fit(work: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> tuple[dict[str, float], float]:
    """(rates by name, median relative error)"""
    names = list(work[0])
    table, measured = np.array([[units[name] for name in names] for units in work]), np.array(seconds)
    rates = fit_rates(table, measured)
    error = float(np.median(np.abs(relative_errors(table, measured, rates))))
    return dict(zip(names, rates.tolist(), strict=True)), error


def measured_lengths(steps: Sequence[MeasuredStep], l_max: int, *, origin: str = "responses") -> Lengths:
    """What the responses would have been uncut."""
    response = np.concatenate([step.rows.response for step in steps])
    cut = np.concatenate([step.truncated for step in steps])
    prompt = float(np.mean(np.concatenate([step.rows.prompt for step in steps])))
    quantiles = survival_quantiles(response, cut, POINTS, BEYOND * max(l_max, int(response.max())))
    return Lengths(tuple(quantiles.tolist()), prompt, f"{len(response):,} measured {origin}", measured=True)


def _kept(setup: Setup, step: MeasuredStep) -> float:
    kept = kept_rows(step.rows, setup.config.algorithm)
    return len(np.unique(step.rows.group[kept])) / len(np.unique(step.rows.group))


def _median(steps: Sequence[MeasuredStep], name: str) -> float:
    return float(np.median([step.seconds[name] for step in steps]))


