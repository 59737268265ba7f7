"""What an estimate rests on, in sentences: printed below its tables. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from siri_megatron.estimate.run import RunEstimate


def notes(run: RunEstimate) -> Iterator[str]:
    """One sentence each; ~ marks what is modelled and not measured."""
    setup, rates = run.setup, run.setup.machine.rates
    measured = "measured" if setup.lengths.measured else "assumed"
    yield (f"lengths ({measured}): {setup.lengths.origin}; prompts of {setup.lengths.prompt:.0f} tokens; taken to "
           "stay as they are while the policy is trained")
    shares = sorted(setup.kept_at(point.step.cap) for point in run.points)
    if shares[0] < 1:
        low, high = f"{shares[0]:.0%}", f"{shares[-1]:.0%}"
        yield f"groups trained on: {low if low == high else f'{low} to {high}'} (the others carry no signal)"
    if rates.origin == "calibrated":
        yield f"seconds: work x rates calibrated on {rates.machine}"
    elif setup.machine.gpu:
        yield "~ seconds: data-sheet rates x assumed efficiencies (siri_megatron/estimate/gpus.py); not measured"
    else:
        yield "~ seconds: nominal rates of a CPU core, right in order of magnitude only; siri plan --calibrate measures"
    if setup.spec == "te":
        yield "~ memory: read from the libraries' sources; learners were measured once, on an H200"
    if not setup.config.rollout.lag:
        yield "rollout.lag=0: learners and engines work in turns, each side waits for the other"
    if setup.config.budget.schedule == "closed":
        yield "closed loop: its caps are not known ahead; shown is the cosine with its bounds and cycles"
    if unknown := [suite.name for suite in setup.config.evaluation.suites if suite.problems is None]:
        yield f"evaluation without {', '.join(unknown)}: the config does not say how many questions (problems)"
    if setup.config.budget.prompt_caps.rule != "none":
        yield "budget.prompt_caps: every prompt is taken to have the step's cap"
    if refill := setup.config.rollout.max_refill:
        yield (f"rollout.max_refill={refill:g}: refills are not counted; with them a step generates up to "
               f"{1 + refill:g} times as much, and trains on more groups than said here")
    if setup.machine.gpu and setup.devices > setup.need:
        yield f"{setup.devices - setup.need} of {setup.devices} GPUs have nothing to do, and are counted"
