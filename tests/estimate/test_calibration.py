"""Rates that made the seconds are found again in them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from estimate_cases import cpu_setup, gpu_setup

from siri_megatron.errors import DataError
from siri_megatron.estimate.calibration import (
    Calibration,
    MeasuredStep,
    calibrate,
    calibration_key,
    generation_work,
    training_work,
)
from siri_megatron.estimate.lengths import lognormal
from siri_megatron.estimate.rates import NOMINAL_CORE
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import at_cap, evaluation_s, generation, planned, sampled_rows

TRUE = replace(NOMINAL_CORE, round_s=2e-3, sequence_s=5e-3, decode_flop_s=1e-10, flop_s=4e-11, micro_batch_s=0.012,
               optimizer_step_s=0.03, verification_s=0.004, overhead_s=0.006, push_s=0.0, push_byte_s=3e-8,
               evaluation_s=0.5, commit_s=0.1, commit_byte_s=0.0, export_byte_s=2e-8)
MACHINE = {"device": "cpu", "cpu": "test", "cores": 2, "packages": {}}
LARGER = {"prompts_per_step": 32, "samples_per_prompt": 8}
CAPS = (128, 128, 64, 32, 96, 128, 48, 80, 32, 112)


def world(**sections: object) -> Setup:
    return cpu_setup(rates=TRUE, lengths=lognormal(60, 0.9, prompt=16), rollout=LARGER, reproducible=True, **sections)


def measured(setup: Setup, cap: int, seed: int, *, slow: float = 1.0) -> MeasuredStep:
    """A step whose seconds are exactly what the true rates make of its work."""
    rng = np.random.default_rng(seed)
    rows = sampled_rows(setup, cap)
    uncut = np.ceil(rng.lognormal(np.log(60), 0.9, len(rows)))
    rows = replace(rows, response=np.minimum(uncut, cap).astype(np.int64))
    engines = rows.group % setup.config.engines.count
    training = setup.pipeline.step(planned(setup, rows, cap), setup.config.algorithm).seconds
    return MeasuredStep(cap, rows, uncut > cap, engines, {
        "generation": slow * generation(setup, rows).seconds, "training": slow * training, "verification": 0.004,
        "planning": 0.005, "other": 0.001, "push": setup.weight_bytes * 3e-8})


def calibrated(setup: Setup, steps: list[MeasuredStep]) -> Calibration:
    outside = {"commit": [0.1, 0.1], "export": [setup.weight_bytes * 2e-8], "evaluation": [evaluation_s(setup)]}
    return calibrate(replace(setup, machine=replace(setup.machine, rates=NOMINAL_CORE)), steps, outside,
                     machine=MACHINE)


@pytest.mark.parametrize("sections", [{}, {"learner": {"pp": 2}}, {"batching": {"mode": "bucketed",
                                                                   "tokens_per_micro_batch": 512}}])
def test_true_rates_are_found(sections: dict[str, object]) -> None:
    setup = world(**sections)
    found = calibrated(setup, [measured(setup, cap, seed) for seed, cap in enumerate(CAPS)])
    for other in (setup, world(**sections, engines={"count": 4, "max_num_seqs": 16})):
        again = replace(other, machine=replace(other.machine, rates=found.rates))
        for cap in (32, 100, 128):
            now, true = at_cap(again, cap), at_cap(other, cap)
            assert (now.generation_s, now.training_s) == (pytest.approx(true.generation_s, rel=0.01),
                                                          pytest.approx(true.training_s, rel=0.01))
            assert now.step_s == pytest.approx(true.step_s, rel=0.01)
    assert max(found.errors.values()) < 1e-3
    assert found.rates.origin == "calibrated"


def test_gpu_has_a_rate_for_reading_its_cache() -> None:
    """Long caps read more context for each token: without that rate they would be planned too fast."""
    on_gpu = replace(TRUE, decode_flop_s=1e-15, round_s=4e-3, context_byte_s=1e-9)
    setup = gpu_setup(budget={"l_min": 32, "l_max": 1024}, data={"max_prompt_tokens": 32}, reproducible=True)
    setup = replace(setup, machine=replace(setup.machine, rates=on_gpu), lengths=lognormal(300, 0.9, prompt=16))
    found = calibrated(setup, [measured(setup, cap, seed) for seed, cap in enumerate((512, *(256, 128, 64, 512) * 3))])
    again = replace(setup, machine=replace(setup.machine, rates=found.rates))
    assert found.rates.context_byte_s == pytest.approx(1e-9, rel=0.1)
    assert at_cap(again, 1024).generation_s == pytest.approx(at_cap(setup, 1024).generation_s, rel=0.03)


def test_slow_steps_do_not_count_much() -> None:
    setup = world()
    steps = [measured(setup, cap, seed, slow=5.0 if seed in (0, 4, 7) else 1.0) for seed, cap in enumerate(CAPS)]
    found = calibrated(setup, steps)
    again = replace(setup, machine=replace(setup.machine, rates=found.rates))
    assert at_cap(again, 100).generation_s == pytest.approx(at_cap(setup, 100).generation_s, rel=0.05)


def test_negative_control_other_seconds_other_rates() -> None:
    setup = world()
    twice = calibrated(setup, [measured(setup, cap, seed, slow=2.0) for seed, cap in enumerate(CAPS)])
    again = replace(setup, machine=replace(setup.machine, rates=twice.rates))
    assert at_cap(again, 100).training_s == pytest.approx(2 * at_cap(setup, 100).training_s, rel=0.02)


def test_lengths_and_signal_come_along() -> None:
    setup = replace(world(), kept=((32, 0.5), (128, 1.0)))
    found = calibrated(setup, [measured(setup, cap, seed) for seed, cap in enumerate(CAPS)])
    shares = {32: 0.5, 48: 0.59375, 64: 0.65625, 80: 0.75, 96: 0.84375, 112: 0.90625, 128: 1.0}
    assert dict(found.kept) == shares
    assert found.lengths.measured
    assert found.lengths.prompt == 16
    for cap in (32, 64, 128):
        assert found.lengths.truncated(cap) == pytest.approx(setup.lengths.truncated(cap), abs=0.04)


def test_same_formulas() -> None:
    """The estimate of a measured step is what the fit says of it."""
    setup = world()
    step = measured(setup, 64, 1)
    for work, name in ((generation_work(setup, step), "generation"), (training_work(setup, step), "training")):
        assert sum(units * vars(TRUE)[rate] for rate, units in work.items()) == pytest.approx(step.seconds[name])


def test_json_round_trip() -> None:
    setup = world()
    found = calibrated(setup, [measured(setup, cap, seed) for seed, cap in enumerate(CAPS)])
    assert Calibration.from_json(json.loads(json.dumps(found.to_json())), "x") == found
    assert found.key == json.loads(json.dumps(calibration_key(setup)))
    assert calibration_key(world(learner={"dp": 2})) != found.key


@pytest.mark.parametrize("spoil", [{"format": 0}, {"rates": {}}, {"lengths": None}])
def test_other_files_are_refused(spoil: dict[str, object]) -> None:
    setup = world()
    good = calibrated(setup, [measured(setup, cap, seed) for seed, cap in enumerate(CAPS)]).to_json()
    with pytest.raises(DataError, match=r"cal\.json is no calibration"):
        Calibration.from_json(good | spoil, "cal.json")


def test_too_few_steps() -> None:
    setup = world()
    with pytest.raises(DataError, match="4 steps to calibrate from"):
        calibrated(setup, [measured(setup, 64, seed) for seed in range(5)])
