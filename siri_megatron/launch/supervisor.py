"""The supervisor: the only one that starts, watches and ends the processes of a run.

    start all ─► engines healthy ─► fleet.json ─► watch ─► mains done, a failure, or a stop ─► end all ─► result.json

Engines, collector and learners start together and load side by side; learners wait for fleet.json. Whatever fails or
hangs ends everything, but for engines (`fleet_watch`), which are restarted while enough of them are up. Ctrl-C,
SIGTERM and SIGHUP ask the learners to commit (`stop.json`), bounded by the grace time; a second signal ends at once. A
scheduler's notice (the file `interrupt`) asks for the same, bounded by what is left until it ends the job. result.json
is written in every case that leaves this process alive. Processes of further nodes are started through `nodes`.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from siri_megatron.errors import SiriError
from siri_megatron.files import TAKES_NO_MORE, disk_failed, disk_says, read_json, write_json
from siri_megatron.launch import procfs, verdict
from siri_megatron.launch.child import Child, Running
from siri_megatron.launch.display import Display
from siri_megatron.launch.fleet import next_epoch
from siri_megatron.launch.fleet_watch import ROUTINE, FleetWatch
from siri_megatron.launch.key import make_key
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.nodes import Nodes
from siri_megatron.launch.progress import last_commit, steps_done
from siri_megatron.launch.pulse import PULSE_S, Pulses, clear_pulses, read_pulses
from siri_megatron.launch.shared_memory import note_shared, remove_shared
from siri_megatron.launch.signals import Signals
from siri_megatron.launch.spec import Kind, ProcessPlan, ProcessSpec
from siri_megatron.launch.stop import clear_stop, request_stop
from siri_megatron.launch.verdict import Failure, Verdict
from siri_megatron.observe.events import EventLog
from siri_megatron.observe.jsonl import Tailer

NOTICE = "the scheduler's notice"
POLL_S = 0.2
NOTE_S = 2.0  # while engines load they make shared memory: what is not noted outlives a kill of everybody
SETTLE_S = 0.6  # after the first failure: let the others write their last words too
END_LIMIT_S = 8.0  # guards that are not done so long after the last SIGKILL are killed themselves
NAMED_FROM = 0.7  # of the silence that ends a run: who was silent so long when others failed is why they did
TRAILING_MAIN_S = 60.0  # between the end of the first main process and the last


class Supervisor:
    """One run of a plan. What goes wrong in a child is not raised: it is the verdict."""

    def __init__(self, plan: ProcessPlan, display: Display, lock: RunLock, nodes: Nodes | None = None) -> None:
        self.plan, self.display, self.lock, self.nodes = plan, display, lock, nodes
        self.paths = plan.run_dir
        self.children: list[Running] = []  # all but the engines
        self.fleet: FleetWatch | None = None
        self.tag = secrets.token_hex(8)
        self.started = time.time()
        self._log = EventLog(self.paths.events, lost=self._lose)
        self._metrics, self._events = Tailer(self.paths.metrics), Tailer(self.paths.events)
        self._first_step = last_commit(self.paths) or 0
        self._metrics.poll()  # what an earlier session wrote is no news
        self._events.poll()
        self._stopping = ""  # why, once a stop was asked for
        self._stop_deadline, self._stop_limit = float("inf"), ""
        self._answered = 0  # signals that the stop is the answer to
        self._main_ended = 0.0  # when the first main process ended with 0
        self._news_at = 0.0  # of the newest step or event since training began
        self._pulses, self._looked = Pulses(time.monotonic()), 0.0
        self._noted_at, self._losing = 0.0, False

    def run(self) -> Verdict:
        """Start everything, watch it, end it, write result.json. The caller holds the run's lock."""
        with Signals() as signals:
            ended = Verdict("failed", "the supervisor itself failed; its traceback is on the terminal")
            try:
                ended = self._supervise(signals)
            except SiriError as error:
                ended = Verdict("failed", error.render())
            except OSError as error:
                if error.errno not in TAKES_NO_MORE:
                    raise
                told = disk_failed(error, self.paths.root).render()
                ended = Verdict("interrupted" if self._stopping else "failed",
                                f"{self._stopping}, and then: " * bool(self._stopping) + told)
            finally:
                self.display.status("ending all processes")
                self._end_all()
                self._show_news()
                ended = self._conclude(ended)
            return ended

    def _supervise(self, signals: Signals) -> Verdict:
        epoch = self._clean()
        self._log.write("launch", task=self.plan.task, processes=len(self.plan.processes), epoch=epoch)
        key = self.nodes.key if self.nodes else make_key(self.paths.key, self.plan.key_file)
        self.fleet = FleetWatch(self.plan, self._start, self._orphans, self._log, key=key, epoch=epoch)
        self.children += [self._start(spec) for spec in self.plan.processes if spec.kind != "engine"]
        while True:
            self._show_news()
            self._look_at_nodes()
            ended = self._heed(signals) or self._judge(self.fleet) or self._stalled()
            if ended:
                self._look_at_nodes()  # what ended the run may have been lost since the look above
                return ended
            published = self.fleet.poll(self.display, restart=not self._stopping)
            if published or (self.fleet.starts and time.monotonic() - self._noted_at >= NOTE_S):
                self._note_shared()
            signals.wait(POLL_S)

    def _start(self, spec: ProcessSpec) -> Running:
        if spec.node and self.nodes:
            return self.nodes[spec.node].start(spec, tag=self.tag, grace_s=self.plan.end_grace_s)
        return Child(spec, tag=self.tag, hold=self.lock.descriptor, grace_s=self.plan.end_grace_s)

    def _look_at_nodes(self) -> None:
        for node in self.nodes.news() if self.nodes else ():
            self._log.write("node_lost", message=f"{node.label} is lost: {node.lost}", node=node.facts.node)

    def _orphans(self) -> list[int]:
        """Processes of this launch and node whose guard was killed."""
        tagged = procfs.tagged(self.tag)
        guarded = {pid for child in self._here() for pid in procfs.descendants(child.guard_pid)}
        return [pid for pid in tagged if pid not in guarded]

    def _all(self) -> list[Running]:
        return [*self.children, *(self.fleet.processes if self.fleet else ())]

    def _here(self) -> list[Child]:
        return [child for child in self._all() if isinstance(child, Child)]

    def _clean(self) -> int:
        """Remove what an earlier supervisor of this run directory left; returns the epoch of the new fleet."""
        failures = [self.paths.failures / f"{spec.role}.json" for spec in self.plan.processes]
        for path in (self.paths.collector, self.paths.rendezvous, self.paths.result, *failures):
            path.unlink(missing_ok=True)
        self._remove_shared()
        note_shared(self.paths.shared(), self.tag, (), self._lose)
        clear_pulses(self.paths)
        clear_stop(self.paths)
        return next_epoch(self.paths)

    def _note_shared(self) -> None:
        note_shared(self.paths.shared(), self.tag, procfs.tagged(self.tag), self._lose)
        if self.nodes:
            self.nodes.note_shared()
        self._noted_at = time.monotonic()

    def _remove_shared(self) -> None:
        """What killed engines, and a learner killed in the midst of a push, left in shared memory."""
        for file in self.paths.shared_weights:
            file.unlink(missing_ok=True)
        remove_shared(self.paths.shared())

    def _lose(self, error: OSError) -> None:
        """Events and notes are for observers: a disk that does not take them is told of once, and ends no run."""
        if not self._losing:
            self._losing = True
            self.display.event({"kind": "disk", "message": f"events are lost: {disk_says(error, self.paths.root)}"})

    def _of(self, kind: Kind) -> list[Running]:
        return [child for child in self.children if child.spec.kind == kind]

    def _show_news(self) -> None:
        for record in self._metrics.poll():
            if record["step"] >= self._first_step:  # a resume rewrites the file: the old records come once more
                self.display.record(record)
                self._news_at = time.monotonic()
        for event in self._events.poll():
            if event["kind"] != ROUTINE:
                self.display.event(event)
            self._news_at = time.monotonic() if event["kind"] == "ready" else self._news_at and time.monotonic()

    # --- verdicts

    def _judge(self, fleet: FleetWatch) -> Verdict | None:
        """A verdict if something failed or every main process is done."""
        if (any(_failed(child) for child in self.children) or (fleet.failures() and not self._stopping)
                or self._hanging(self.plan.silence_s)):
            time.sleep(SETTLE_S)
            if self.nodes:
                self.nodes.roll_call()
            fleet.poll(self.display, restart=False)
            return self._failure([child for child in self.children if _failed(child)], fleet.failures())
        codes = [child.poll() for child in self._of("main")]
        if None in codes:
            return self._trailing() if 0 in codes else None
        if self._stopping and steps_done(self.paths) < self.plan.steps:
            return Verdict("interrupted", self._stopping)
        return Verdict("success", "every main process ended with 0")

    def _stalled(self) -> Verdict | None:
        """Training had begun, and then nothing was heard for too long."""
        limit, silent = self.plan.hang_timeout_s, time.monotonic() - self._news_at
        if limit is None or not self._news_at or silent <= limit:
            return None
        told = SiriError(f"nothing has happened for {silent:.0f} s: no step and no event",
                         rule=f"launch.hang_timeout_s={limit:g}", fix=f"read the logs in {self.paths.logs}")
        return Verdict("failed", told.render())

    def _failure(self, failed: Sequence[Running], engines: Sequence[Failure]) -> Verdict:
        if self._stopping and failed and all(child.poll() == verdict.TERMINATED for child in failed):
            return Verdict("interrupted", f"{self._stopping}, which the processes got as well")  # as schedulers do it
        hanging = self._hanging(NAMED_FROM * self.plan.silence_s)  # others may have missed it a moment sooner
        failures = verdict.root_cause([*map(self._describe, failed), *engines, *hanging])
        first = failures[0]
        told = SiriError(f"{first.role}: {first.what}", rule=first.rule, fix=first.fix)
        return Verdict("failed", told.render(), failures=failures)

    def _hanging(self, limit_s: float) -> list[Failure]:
        """Processes that run, and have had no pulse for so long."""
        now, running = time.monotonic(), {child.role: child for child in self.children if child.poll() is None}
        if now - self._looked >= PULSE_S:
            self._pulses.look(read_pulses(self.paths, running), running, now)
            self._looked = now
        silent = self._pulses.silent(limit_s)
        return [verdict.hanging(role, child.spec.kind, silent[role], self.plan.silence_s, str(child.spec.log))
                for role, child in running.items() if role in silent]

    def _describe(self, child: Running) -> Failure:
        words = read_json(self.paths.failures / f"{child.role}.json") or verdict.on_a_full_disk(
            str(self.paths.root), shutil.disk_usage(self.paths.root).free)
        return verdict.failure(child.role, child.spec.kind, child.poll() or 0, words, child.log_tail(),
                               str(child.spec.log))

    def _trailing(self) -> Verdict | None:
        """One main process is done: the others must follow soon."""
        self._main_ended = self._main_ended or time.monotonic()
        if time.monotonic() - self._main_ended < TRAILING_MAIN_S:
            return None
        late = ", ".join(child.role for child in self._of("main") if child.poll() is None)
        return Verdict("failed", f"{late} did not end within {TRAILING_MAIN_S:.0f} s after the other main processes")

    def _heed(self, signals: Signals) -> Verdict | None:
        """Answer signals: the first asks the learners to commit; a second one, or the deadline, ends the run."""
        noticed = not self._stopping and self.paths.interrupt.exists()
        if not signals.received and not self._stopping and not noticed:
            return None
        if not self._stopping:
            by, grace_s, self._stop_limit = (
                (NOTICE, self.plan.notice_grace_s, f"{self.plan.notice_grace_s:g} s") if noticed else
                (signals.received[0].name, self.plan.stop_grace_s, f"launch.stop_grace_s={self.plan.stop_grace_s:g} s"))
            self._stopping, self._answered = f"stopped by {by}", 0 if noticed else 1
            if not self._can_commit():
                return Verdict("interrupted", self._stopping + " before training began" * self._commits)
            try:
                self._ask_to_stop(by, grace_s)
            except OSError as error:
                return Verdict("interrupted", f"{self._stopping}; nobody could be told to commit "
                                              f"({disk_says(error, self.paths.stop)})")
        if len(signals.received) > self._answered:
            return Verdict("interrupted", f"{self._stopping}, then at once by a second signal")
        if time.monotonic() > self._stop_deadline:
            return Verdict("interrupted", f"{self._stopping}; no step boundary was reached within "
                                          f"{self._stop_limit}, so a resume goes on from the last commit")
        return None

    @property
    def _commits(self) -> bool:
        """Evaluations and warm starts have nothing to stop at."""
        return self.plan.task not in ("eval", "sft")

    def _can_commit(self) -> bool:
        """False while engines load: nothing has happened yet."""
        return self._commits and (self.paths.fleet.exists() or not self.plan.of("engine"))

    def _ask_to_stop(self, by: str, grace_s: float) -> None:
        request_stop(self.paths, by)
        self._stop_deadline = time.monotonic() + grace_s
        self._log.write("stop_asked", by=by, grace_s=grace_s)
        self.display.status(f"{by}: finishing the step and committing, at most {grace_s:g} s (again: end at once)")

    # --- the end

    def _end_all(self) -> None:
        """End every process and wait for it; nothing of this launch lives afterwards."""
        if self.fleet:
            self.fleet.stop()
        for child in self.children:
            child.stop()
        deadline = time.monotonic() + self.plan.end_grace_s + END_LIMIT_S
        while any(child.poll() is None for child in self._all()) and time.monotonic() < deadline:
            time.sleep(0.05)
        procfs.send([child.guard_pid for child in self._here() if child.poll() is None], signal.SIGKILL)
        if self.nodes:
            self.nodes.end()
        procfs.end(lambda: procfs.tagged(self.tag), 0.0, reap=lambda: None)
        with suppress(OSError):  # read-only by now: what this leaves behind goes at the next start
            self._remove_shared()

    def _conclude(self, ended: Verdict) -> Verdict:
        extra = {"task": self.plan.task, "steps": self.plan.steps, "started": self.started,
                 "seconds": round(time.time() - self.started, 1)}
        ended = replace(ended, step=steps_done(self.paths), committed=last_commit(self.paths), extra=extra)
        try:
            write_json(self.paths.result, ended.to_json())
            clear_stop(self.paths)
        except OSError as error:  # the caller tells the verdict all the same
            ended = replace(ended, reason=f"{ended.reason}\n  and: {disk_says(error, self.paths.result)}")
        self._log.write("end", step=ended.step, status=ended.status, message=ended.reason.splitlines()[0])
        return ended


def _failed(child: Running) -> bool:
    """It ended, and should not have: only main processes may end, and only with 0."""
    code = child.poll()
    return code is not None and not (child.spec.kind == "main" and code == 0)
