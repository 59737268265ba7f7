"""The training loop. Every learner rank runs it, as Megatron itself does; reading down it says what one step is.

    budget(s) ─► collect: G samples a prompt, stamped ─► verify + cap reward ─► ledger
       ▲                                                                          │ mmap, only the rows dealt to a rank
       │ observe(J(B), truncation, lengths)                                       ▼
       └─── metrics ◄── push weights ◄── Megatron steps ◄── plan: advantages, shapes, micro-batches

With a lag the collector is already at the steps after this one (`run_ahead`); with none it begins in `collect`.

Rank 0 decides (budget, plan, commit) and tells the others over the control plane; nobody waits inside a model
collective for something that is not already there. What each verb does stands in `siri_megatron/run.py`.
"""

from __future__ import annotations

from siri_megatron.run import Run


def train(run: Run) -> None:
    """Train from `run.step` to the end of the schedule, or until a stop is asked for (then the step is committed)."""
    if not run.ready():
        return
    run.push(run.step)
    run.finish_pending_phase()
    run.run_ahead(run.step)

    for step in range(run.step, run.steps):
        budget = run.budget(step)

        batch = run.collect(budget)
        if batch is None:  # a stop was asked for while the engines were generating
            run.commit(step)
            return
        plan = run.plan(batch, budget)
        trained = run.learn(plan, batch)
        run.push(step + 1)

        run.observe(budget, plan, trained)
        run.run_ahead(step + 1)
        tag = run.phase_end(step)
        if run.commit(step + 1, tag):  # stopped; a phase end that lies here is finished by the resumed run
            return
        if tag:
            run.finish_phase(tag, step + 1)
