"""The engines of one launch: started, watched, ended when they hang, restarted, published.

    processes, /health, pushed.json, accused/ ──► FleetHealth (pure) ──► fleet.json, events, kills, restarts

Whether an engine may serve is decided in `rollout/health.py`; here stands what is done about it. An engine that fails
before all have been healthy once ends the run (its arguments are wrong, or memory is short: a restart would not help);
later the run goes on while `min_engines` are up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from siri_megatron.errors import EngineError
from siri_megatron.launch import procfs, verdict
from siri_megatron.launch.child import Running
from siri_megatron.launch.display import Display
from siri_megatron.launch.fleet import Probe, publish
from siri_megatron.launch.given import GivenEngine, HeldProbe
from siri_megatron.launch.spec import ProcessPlan, ProcessSpec
from siri_megatron.launch.verdict import Failure
from siri_megatron.observe.events import EventLog
from siri_megatron.rollout.fleet import accusations, read_pushed
from siri_megatron.rollout.health import LOADING, EngineHealth, FleetHealth, Transition

ROUTINE = "engine_up"
"""Kind of the events that tell of no loss; `engine` is the kind of the others."""


class FleetWatch:
    """All engines of a plan, started at construction. Call `poll` a few times a second.

    Args:
        start: makes a process of a spec.
        orphans: finds processes of the launch that have lost their guard.
        key: the run's key.
    """

    def __init__(self, plan: ProcessPlan, start: Callable[[ProcessSpec], Running], orphans: Callable[[], list[int]],
                 log: EventLog, *, key: str, epoch: int) -> None:
        self.plan, self.specs, self._log = plan, plan.of("engine"), log
        self._start, self._orphans = start, orphans
        self._since = time.monotonic()
        self._health = FleetHealth.start(plan.health, len(self.specs), self._since, epoch)
        core_s = plan.health.hang_s / 4
        self._probes = [(Probe if spec.argv else HeldProbe)(spec.url, key, core_s) for spec in self.specs]
        self.children = [self._begin(index) for index in range(len(self.specs))]
        self._losses: dict[int, Failure] = {}  # of each engine the newest
        self._published: object = None

    @property
    def processes(self) -> list[Running]:
        """Those that this run started."""
        return [child for child in self.children if not isinstance(child, GivenEngine)]

    def _begin(self, index: int) -> Running:
        """Start an engine, or wait for one that others start."""
        spec, probe = self.specs[index], self._probes[index]
        return GivenEngine(spec, probe) if isinstance(probe, HeldProbe) else self._start(spec)

    @property
    def ready(self) -> bool:
        """All engines have been healthy at least once, and fleet.json was written."""
        return self._published is not None

    @property
    def starts(self) -> bool:
        """An engine is being started, for the first time or anew."""
        return any(engine.state in LOADING for engine in self._health.engines)

    def poll(self, display: Display, *, restart: bool) -> bool:
        """Look at everything, then act; returns whether fleet.json was written. restart: False once the run is to stop.

        Raises:
            EngineError: an engine did not become healthy in time; says what it said last.
        """
        if not self.children:
            return False
        self._look()
        for index in self._health.to_end():
            self.children[index].kill()
        for index in self._health.due(time.monotonic()) if restart else ():
            self.children[index] = self._begin(index)
            self._health.restarted(index, time.monotonic())
        for transition in self._health.news():
            self._tell(transition)
        if not self.ready:
            self._say_loading(display)
        return self._publish()

    def failures(self) -> tuple[Failure, ...]:
        """The losses that end the run: one before all were ready, or one too many; else empty."""
        if not self.ready:
            return tuple(self._losses.values())
        up = {engine.index for engine in self._health.members()}
        if len(up) >= self.plan.min_engines:
            return ()
        rule = f"engines.min_engines={self.plan.min_engines} of {len(self.specs)} engines are up; now it is {len(up)}"
        return tuple(replace(loss, rule=rule) for index, loss in self._losses.items() if index not in up)

    def stop(self) -> None:
        """Start the end of every engine."""
        for probe in self._probes:
            probe.stop()
        for child in self.children:
            child.stop()

    # --- looking

    def _look(self) -> None:
        now = time.monotonic()
        for index, child in enumerate(self.children):
            if child.poll() is not None and self._health.engines[index].gone is None:
                self._lost(index, child, now)
        for index, probe in enumerate(self._probes):
            self._health.answered(index, probe.answered_at)
            self._health.worked(index, probe.worked_at)
        for index, child in enumerate(self.children):
            if isinstance(child, GivenEngine) and (why := child.lost()):
                self._health.accused(self._health.engines[index].key, why)
        for key, why in accusations(self.plan.run_dir).items():
            self._health.accused(key, why)
        self._health.confirm(read_pushed(self.plan.run_dir).keys)
        self._check_start(now)
        self._health.tick(now)

    def _lost(self, index: int, child: Running, now: float) -> None:
        """A process is gone: note why, and that nothing of it is left."""
        engine, code = self._health.engines[index], child.poll() or 0
        if code < 0:  # its guard was killed: what the engine had started lives on
            procfs.end(self._orphans, 0.0, reap=lambda: None)
        ended = engine.why if engine.state == "dead" else verdict.explain_exit(code)  # dead before: it was ended by us
        loss = verdict.failure(child.role, "engine", code, None, child.log_tail(), str(child.spec.log))
        self._losses[index] = replace(loss, what=loss.what.replace(verdict.explain_exit(code), ended, 1))
        self._health.exited(index, now, ended)

    def _check_start(self, now: float) -> None:
        waited, limit = now - self._since, self.plan.health.start_timeout_s
        pending = [self.children[engine.index] for engine in self._health.loading()]
        if pending and waited > limit:
            raise late(pending, waited, limit)

    # --- telling

    def _publish(self) -> bool:
        """Write fleet.json when something in it has changed; not before every engine has been healthy once."""
        if self._health.loading() or (self._losses and not self.ready):
            return False
        members = self._health.members()
        content = (self._health.epoch, [(engine.key, engine.state) for engine in members])
        if content == self._published:
            return False
        publish(self.plan.run_dir, [self._entry(engine) for engine in members], epoch=self._health.epoch,
                model=self.plan.model)
        if not self.ready:
            self._log.write("engines_ready", seconds=round(time.monotonic() - self._since, 2), engines=len(members))
        self._published = content
        return True

    def _entry(self, engine: EngineHealth) -> dict[str, object]:
        child = self.children[engine.index]
        return {"index": engine.index, "url": child.spec.url, "tp": child.spec.tp, "pid": child.pid,
                "incarnation": engine.incarnation, "state": engine.state}

    def _tell(self, one: Transition) -> None:
        routine = one.after == "healthy" or (one.after == "stale" and one.before in LOADING)
        role = self.specs[one.index].role
        self._log.write(ROUTINE if routine else "engine", engine=one.index, incarnation=one.incarnation,
                        before=one.before, after=one.after, message=f"{role} {one.before} → {one.after}: {one.why}")

    def _say_loading(self, display: Display) -> None:
        ready = len(self.specs) - len(self._health.loading())
        display.status(f"engines {ready}/{len(self.specs)} healthy, {time.monotonic() - self._since:.0f} s")


def late(pending: list[Running], waited: float, timeout_s: float) -> EngineError:
    """Engines that are not healthy in time."""
    said = verdict.meaningful_lines(pending[0].log_tail())
    return EngineError(f"{', '.join(child.role for child in pending)} not healthy after {waited:.0f} s; "
                       f"{pending[0].role} said last:" + "".join(f"\n    {line}" for line in said),
                       rule=f"every engine answers /health within engines.start_timeout_s={timeout_s:g} s",
                       fix=f"read {pending[0].spec.log}, or raise engines.start_timeout_s")
