"""The pipeline's time against a simulated 1F1B schedule, and against its closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from estimate_cases import SMALL, cpu_setup, gpu_setup
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.rates import NOMINAL_CORE
from siri_megatron.estimate.step import planned, sampled_rows
from siri_megatron.estimate.training import Pipeline, sizes
from siri_megatron.estimate.work import ModelWork

PLAIN = replace(NOMINAL_CORE, micro_batch_s=0.0, optimizer_step_s=0.0)
Cost = Callable[[int, int], float]


def one_f_one_b(stages: int, count: int, forward: Cost, backward: Cost) -> float:
    """End of a 1F1B schedule, event by event. forward(stage, micro) and backward(stage, micro): seconds."""
    orders = []
    for stage in range(stages):
        ahead = min(count, stages - 1 - stage)
        order = [("f", micro) for micro in range(ahead)]
        for micro in range(count - ahead):
            order += [("f", micro + ahead), ("b", micro)]
        orders.append(order + [("b", micro) for micro in range(count - ahead, count)])
    done: dict[tuple[str, int, int], float] = {}
    free, at = [0.0] * stages, [0] * stages
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while at[stage] < len(orders[stage]):
                kind, micro = orders[stage][at[stage]]
                needed = ("f", stage - 1, micro) if kind == "f" else ("b", stage + 1, micro)
                first = (kind == "f" and stage == 0) or (kind == "b" and stage == stages - 1)
                if not first and needed not in done:
                    break
                begin = max(free[stage], 0.0 if first else done[needed])
                free[stage] = begin + (forward if kind == "f" else backward)(stage, micro)
                done[kind, stage, micro] = free[stage]
                at[stage] += 1
    return max(free)


def simulated(pipeline: Pipeline, micros: Sequence[tuple[float, float]]) -> float:
    cost = {(stage, at): pipeline.micro_batch(stage, *micro) for stage in range(pipeline.layout.pp)
            for at, micro in enumerate(micros)}
    return one_f_one_b(pipeline.layout.pp, len(micros), lambda stage, at: cost[stage, at][0],
                       lambda stage, at: cost[stage, at][1])


def test_simulator_gives_the_published_bubble() -> None:
    """Narayanan et al., 2104.04473: (p - 1) of m + p - 1 slots."""
    for stages, count in ((2, 4), (4, 8), (8, 8), (4, 3)):
        assert one_f_one_b(stages, count, lambda *_: 1.0, lambda *_: 2.0) == 3.0 * (count + stages - 1)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(("pp", "count"), [(1, 5), (2, 4), (4, 8), (8, 16)])
def test_as_simulated_with_equal_micro_batches(pp: int, count: int, recompute: str) -> None:
    pipeline = Pipeline(ModelWork.of(SMALL, "float32"), LearnerConfig(pp=pp, recompute=recompute), PLAIN, 0)
    micros = [(400.0, 400.0 * 90)] * count
    assert sum(pipeline.pipelined(micros)) == pytest.approx(simulated(pipeline, micros))


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("cap", [32, 128])
def test_as_simulated_with_a_plan(pp: int, cap: int) -> None:
    setup = cpu_setup(rates=PLAIN, learner={"pp": pp}, rollout={"prompts_per_step": 32, "samples_per_prompt": 8},
                      cores=64)
    plan, pipeline = planned(setup, sampled_rows(setup, cap), cap), setup.pipeline
    micros = [[sizes(plan, micro) for micro in step.ranks[0]] for step in plan.optimizer_steps]
    expected = sum(simulated(pipeline, step) for step in micros)
    found = pipeline.step(plan, setup.config.algorithm)
    assert found.busy_s + found.bubble_s == pytest.approx(expected, rel=0.01)
    assert found.busy_s != pytest.approx(expected, rel=0.02)  # negative control: without the bubble


@pytest.mark.parametrize("cap", [8192, 16384])
def test_as_simulated_with_long_samples(cap: int) -> None:
    """Packs of few long samples differ in cost, and the last one may be short."""
    setup = gpu_setup("Llama-3.3-70B-Instruct", learner={"tp": 8, "pp": 4, "dp": 2, "sequence_parallel": True},
                      rollout={"prompts_per_step": 128})
    plan, pipeline = planned(setup, sampled_rows(setup, cap), cap), setup.pipeline
    for step in plan.optimizer_steps:
        for rank in step.ranks:
            micros = [sizes(plan, micro) for micro in rank]
            expected, (busy, bubble) = simulated(pipeline, micros), pipeline.pipelined(micros)
            assert busy + bubble == pytest.approx(expected, rel=0.005)
            assert bubble == pytest.approx(expected - busy, rel=0.2)


def test_virtual_pipeline_divides_the_bubble() -> None:
    micros = [(400.0, 4000.0)] * 8
    work = ModelWork.of(replace(SMALL, vocab=0), "float32")
    one, two = (Pipeline(work, LearnerConfig(pp=4, vpp=vpp), PLAIN, 0).pipelined(micros) for vpp in (1, 2))
    assert (two[0], two[1]) == (one[0], one[1] / 2)
    assert one[1] / one[0] == pytest.approx(3 / 8)


def test_slowest_replica_counts() -> None:
    setup = cpu_setup(rates=PLAIN, cores=64, learner={"dp": 2})
    plan = planned(setup, sampled_rows(setup, 128), 128)
    by_rank = [[sum(setup.pipeline.pipelined([sizes(plan, micro) for micro in step.ranks[rank]]))
                for rank in range(2)] for step in plan.optimizer_steps]
    found = setup.pipeline.step(plan, setup.config.algorithm)
    assert found.seconds == pytest.approx(sum(max(ranks) for ranks in by_rank))


@pytest.mark.parametrize(("further", "passes"), [({}, 0), ({"old_logprobs": "decoupled"}, 1), ({"kl_coef": 0.1}, 1),
                                                 ({"old_logprobs": "decoupled", "kl_coef": 0.1}, 2)])
def test_parts_add_up_with_passes_before(further: dict[str, object], passes: int) -> None:
    setup = cpu_setup(rates=PLAIN, cores=64)
    plan = planned(setup, sampled_rows(setup, 128), 128)
    found = setup.pipeline.step(plan, AlgorithmConfig(**further))
    forward = found.busy_s / 3  # a backward pass takes two forward passes
    assert found.before_s == pytest.approx(passes * forward)
    assert found.seconds == found.busy_s + found.bubble_s + found.update_s + found.before_s


def test_no_signal_no_time() -> None:
    setup = cpu_setup(kept=0.0)
    plan = planned(setup, sampled_rows(setup, 128), 128)
    assert setup.pipeline.step(plan, setup.config.algorithm).seconds == 0.0


@given(st.lists(st.integers(8, 900), min_size=1, max_size=9), st.integers(0, 8), st.sampled_from([1, 2, 4]))
def test_more_tokens_never_faster(tokens: list[int], at: int, pp: int) -> None:
    pipeline = Pipeline(ModelWork.of(SMALL, "float32"), LearnerConfig(pp=pp), NOMINAL_CORE, 0)
    micros = [(float(count), float(count) ** 2) for count in tokens]
    more = list(micros)
    count = tokens[at % len(tokens)] + 8.0
    more[at % len(tokens)] = (count, count**2)
    assert sum(pipeline.pipelined(more)) > sum(pipeline.pipelined(micros))


def test_crowded_cores_are_slower() -> None:
    roomy, crowded = (cpu_setup(cores=cores, learner={"pp": 4}) for cores in (4, 2))
    plan = planned(roomy, sampled_rows(roomy, 128), 128)
    times = [setup.pipeline.step(plan, setup.config.algorithm).busy_s for setup in (roomy, crowded)]
    assert times[1] == pytest.approx(2 * times[0])


def test_tensor_parallelism_pays_with_exchange() -> None:
    """Twice the ranks halve the products, but not what goes over the wires."""
    one = gpu_setup(learner={"tp": 1, "dp": 4})
    two = gpu_setup(learner={"tp": 2, "dp": 4})
    rows = sampled_rows(one, 16384)
    plan = planned(one, rows, 16384)
    times = np.array([setup.pipeline.step(plan, setup.config.algorithm).busy_s for setup in (one, two)])
    assert 0.5 < times[1] / times[0] < 0.75
