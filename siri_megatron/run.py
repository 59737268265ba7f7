"""One training run as seen by one learner rank: the verbs of `loop.py`.

Rank 0 holds the connections (collector, engines, metric files) and decides; `share` hands each decision to the other
ranks over the control plane. The collective verbs (learn, push, commit, export) are entered by all ranks only after
such a hand-over, so their time-outs measure the work itself and never somebody else's generation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from siri_megatron.batching.plan import StepPlan
from siri_megatron.budget.admission import admissible
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.checkpoint import store
from siri_megatron.checkpoint.saver import Saver, save_failed
from siri_megatron.config import RunConfig
from siri_megatron.decisions import Decisions
from siri_megatron.errors import StaleFleet
from siri_megatron.learner.control import ControlPlane
from siri_megatron.learner.learner import Learner
from siri_megatron.ledger.read import StepRows, closed_steps, open_step
from siri_megatron.ledger.retention import removable, remove_steps
from siri_megatron.observe.recorder import Recorder
from siri_megatron.observe.render import percent
from siri_megatron.observe.spans import SpanLog
from siri_megatron.observe.stages import StageClock
from siri_megatron.paths import RunDir
from siri_megatron.reward.alarm import verifier_alarm
from siri_megatron.rollout.probe import check_bound
from siri_megatron.rollout.source import Source
from siri_megatron.weights.probe import LogprobProbe
from siri_megatron.weights.push import WeightPush

START = "start"


@dataclass
class Run:
    """Everything that a step needs. `recorder` exists on rank 0 only; `pusher` is None in a replay (no engines).

    `spans`: when this rank was at what; None on ranks that keep none.
    """

    config: RunConfig
    paths: RunDir
    control: ControlPlane
    learner: Learner
    source: Source
    pusher: WeightPush | None
    stop: threading.Event
    recorder: Recorder | None = None
    spans: SpanLog | None = None
    step: int = 0
    committed: int = -1
    failed_commits: int = 0
    pending_tag: str | None = START
    decisions: Decisions = field(init=False)
    saver: Saver = field(init=False)
    clock: StageClock = field(init=False)
    _stats: dict[str, Any] = field(default_factory=dict)
    _batch: StepRows | None = None

    def __post_init__(self) -> None:
        self.decisions = Decisions(self.config, self.learner.architecture, self.learner.spec)
        self.saver = Saver(self.paths, self.learner, self.config)
        self.clock = StageClock(heard=self.spans.add if self.spans else None)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.decisions.controller.steps

    def ready(self) -> bool:
        """Wait until engines and collector serve. The learner has loaded meanwhile; False when a stop came first."""
        ready = bool(self.share("ready", lambda: self.source.ready(self.stop),
                                within_s=self.config.engines.start_timeout_s))
        waited = self.clock.take()["step"]
        if self.recorder:
            self.recorder.event("ready", self.step, message=f"learners waited {waited:.1f} s for the engines")
        return ready

    def push(self, version: int) -> None:
        """Bring every engine to the weights for step `version`; the version is asserted on each of them."""
        if self.pusher:
            with self.clock.stage("push"):
                pushed = self.pusher.push(str(version))
                self._probe(version)
            if self.recorder and pushed["push_tries"] > 1:
                self.recorder.event("push_repeated", version, message=f"{pushed['push_tries']:.0f} attempts; "
                                    f"{pushed['push_engines']:.0f} engines have the weights")

    def _probe(self, version: int) -> None:
        """Every so many pushes: engines and learner score the same tokens. Ends the run if they disagree."""
        every = self.config.push.probe_every
        if not every or version % every:
            return
        assert self.pusher is not None
        began = time.monotonic()
        share = partial(self.share, within_s=self.config.push.timeout_s)
        report = LogprobProbe(self.pusher, self.learner, self.config, share).run(str(version))
        if self.recorder:
            self._stats |= report.metrics | {"probe_s": time.monotonic() - began}
            self.recorder.event("probe", version, message=report.sentence, **report.metrics)
        check_bound(report, self.config.push.probe_bound)

    def budget(self, step: int) -> StepBudget:
        """The budget of a step. Only rank 0's controller hears metrics, so it issues budgets and phase ends for all."""
        return StepBudget.from_json(self.share(f"budget-{step}", lambda: self.decisions.budget(step).to_json()))

    def phase_end(self, step: int) -> str | None:
        """Tag of the phase whose last step this is; decided once the step was observed."""
        tag: str | None = self.share(f"phase-end-{step}", lambda: self.decisions.phase_end(step))
        return tag

    def run_ahead(self, next_step: int) -> None:
        """Have the engines go on with all steps that `rollout.lag` admits now; only rank 0 asks, and nobody waits.

        Its weights are pushed, and what decides about steps has heard of all before it. Steps under way stay so.
        """
        lag = self.config.rollout.lag
        if lag and self.recorder and not self.stop.is_set():
            for step in admissible(next_step, pushed=next_step, lag=lag, steps=self.steps):
                budget = self.decisions.budget(step)
                self.source.admit(budget, self.decisions.caps(budget, step - next_step))

    def collect(self, budget: StepBudget) -> StepRows | None:
        """Wait until the step's groups lie in the ledger and map them; None when a stop was asked for first."""
        with self.clock.stage("generation"):
            stats = self._sampled(f"collected-{budget.step}", budget.step, self.config.collect_timeout_s(budget.cap),
                                  lambda: self.source.collect(budget, self.stop, self.decisions.caps(budget)))
        if stats is None:
            return None
        if not self.config.rollout.lag:  # with a lag answers are verified while other steps are trained
            self.clock.move("generation", "verification", stats["verification_s"])
        self._stats, self._batch = stats, open_step(self.source.ledger, budget.step)
        return self._batch

    def _sampled(self, name: str, version: int, within_s: float, ask: Callable[[], Any]) -> Any:
        """What rank 0 gets from the engines; when all that had the weights are lost, those left get them first.

        Ends: engines.max_restarts bounds how many can be lost.
        """
        def answer() -> dict[str, Any]:
            try:
                return {"answer": ask()}
            except StaleFleet:
                return {}

        while "answer" not in (got := self.share(name, answer, within_s=within_s)):
            self.push(version)
        return got["answer"]

    def plan(self, batch: StepRows, budget: StepBudget) -> StepPlan:
        """Advantages, shapes and micro-batches at this cap: decided by rank 0, the same everywhere."""
        with self.clock.stage("planning"):
            plan = self.share(f"plan-{budget.step}", lambda: self._decide_plan(batch, budget))
        return StepPlan.from_json(plan)

    def _decide_plan(self, batch: StepRows, budget: StepBudget) -> dict[str, Any]:
        plan, figures = self.decisions.plan(batch, budget)
        self._stats |= figures
        return plan.to_json()

    def learn(self, plan: StepPlan, batch: StepRows) -> dict[str, float]:
        """The optimizer steps of the plan; each rank reads only the rows dealt to it."""
        with self.clock.stage("training"):
            return self.learner.train_step(plan, batch)

    def observe(self, budget: StepBudget, plan: StepPlan, trained: dict[str, float]) -> None:
        """Write the step's metrics and let rank 0's deciders hear of it."""
        seconds = self.clock.take()
        if self.spans:
            self.spans.write(budget.step)
        if self.recorder:
            trained = trained | {"failed_commits": float(self.failed_commits)}
            planned = {**plan.stats(), **plan.widths_used(), **self.decisions.count_shapes(plan)}
            self.recorder.step(budget, self._stats, planned, trained, seconds)
            assert self._batch is not None, "a step is collected before it is observed"
            for kind, message in self.decisions.observe(self._batch, budget, plan, self._stats).items():
                self.recorder.event(kind, budget.step, message=message)

    def commit(self, step: int, tag: str | None = None) -> bool:
        """Commit the state before `step` if it is due. Returns whether the loop is to end here.

        A commit in the background is completed by the first call after its files are written, or by the next commit.

        Raises:
            RunFailed: a commit failed, and there is nothing to go on with or checkpoint.on_error=stop.
        """
        written = self.saver.all_written()
        stop, written = self.share(f"stop-{step}", lambda: [self.stop.is_set(), written])
        last = step == self.steps
        wait = bool(tag or stop or last)
        due = wait or step % self.config.checkpoint.every_steps == 0
        fresh = due and step not in (self.committed, self.saver.step)
        if self.saver.step is not None and (written or wait or fresh):
            self._complete(ending=(stop or last) and not fresh)
        if fresh:
            with self.clock.stage("commit"):
                background = self.config.checkpoint.async_save and not wait
                self.saver.start(step, tag, self.decisions.state(), background=background)
            if not background:
                self._complete(ending=stop or last)
        return stop and not last

    def _complete(self, *, ending: bool) -> None:
        """End the save in flight: note it, or what became of it. ending: no other one follows."""
        with self.clock.stage("commit"):
            outcome = self.saver.complete()
        if outcome.failure is None:
            self.committed = outcome.step
            self._prune_ledger()
            self._note("commit", outcome.step, f"state before step {outcome.step}"
                       + (f" as {outcome.tag}" if outcome.tag else ""), tag=outcome.tag)
        elif ending or self.config.checkpoint.on_error == "stop":
            raise save_failed(outcome)
        else:
            self.failed_commits += 1
            self._note("commit_failed", outcome.step, outcome.failure, tag=outcome.tag)

    def _prune_ledger(self) -> None:
        """Remove ledger steps that the newest commit has left behind. Of the run's own ledger: a replayed one stays."""
        steps = removable(closed_steps(self.paths.ledger), self.committed, self.config.checkpoint.keep_ledger)
        if steps and self.learner.is_rank0:
            remove_steps(self.paths.ledger, steps)

    def finish_pending_phase(self) -> None:
        """What the starting point still lacks: an evaluation of the starting weights, or a phase end cut short."""
        tag = self.pending_tag
        if tag is None or not self.share("pending", lambda: self._is_pending(tag)):
            return
        if tag == START:
            if self.config.evaluation.at_start:
                self._evaluate(START, self.step)
        else:
            self.finish_phase(tag, self.step)

    def _is_pending(self, tag: str) -> bool:
        exported = tag == START or (self.paths.export / tag).exists() or not self.config.checkpoint.export_phase_ends
        return not (exported and (self.paths.evaluations / f"{tag}.json").exists())

    def finish_phase(self, tag: str, step: int) -> None:
        """A phase end: export the weights just committed, then evaluate them at every budget."""
        if self.config.checkpoint.export_phase_ends:
            with self.clock.stage("export"):
                store.export(self.paths, self.learner, self.config, tag)
            self._note("export", step, f"{self.paths.export / tag}", tag=tag)
        if self.config.evaluation.at_phase_ends:
            self._evaluate(tag, step)

    def _evaluate(self, tag: str, step: int) -> None:
        limit_s = self.config.evaluation_wait_s + self.config.evaluation_timeout_s
        with self.clock.stage("evaluation"):
            report = self._sampled(f"evaluated-{tag}", step, limit_s,
                                   lambda: self.source.evaluate(tag, step, self.stop))
        if report:
            curve = ", ".join(f"@{budget} {percent(at['accuracy'])}" for budget, at in report["budgets"].items())
            suites = "".join(f"; {name} {percent(at['accuracy'])}" for name, at in report["suites"].items())
            self._note("evaluation", step, f"{tag}: {curve}, {report['mean_tokens']:.1f} tokens{suites}", tag=tag,
                       accuracy=report["accuracy"], mean_tokens=report["mean_tokens"])
            self._alarm(f"evaluation {tag}", step, [report, *report["suites"].values()])

    def _alarm(self, what: str, step: int, reports: list[dict[str, Any]]) -> None:
        failed = sum(report["failed_verifications"] for report in reports)
        samples = sum(report["problems"] * report["samples"] for report in reports)
        alarm = verifier_alarm(failed, samples, self.config.reward.max_failed)
        if alarm and self.recorder:
            self.recorder.event("verifier_alarm", step, message=f"{what}: {alarm}")

    def _note(self, kind: str, step: int, message: str, **fields: Any) -> None:
        """An event about work outside of a plain step, with the seconds it took."""
        seconds = self.clock.pop(kind.removesuffix("_failed"))
        if self.recorder:
            self.recorder.event(kind, step, message=f"{message}, {seconds:.1f} s", seconds=seconds, **fields)

    def close(self) -> None:
        """Release connections, files and process groups."""
        if self.pusher:
            self.pusher.close()
        if self.spans:
            self.spans.write()
        if self.recorder:
            self.recorder.close()
        self.control.close()
        self.learner.close()

    def share(self, name: str, decide: Callable[[], Any], *, within_s: float = 0.0) -> Any:
        """Rank 0 decides and publishes, the others receive (JSON).

        Args:
            within_s: what rank 0 itself may wait for engines before it decides; the others wait as much longer.
        """
        return self.control.share(name, decide, timeout_s=within_s + self.config.learner.control_timeout_s)
