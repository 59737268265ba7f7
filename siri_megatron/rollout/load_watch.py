"""Asks engines how loaded they are; tells the limits, and keeps what a step's metrics say of it.

vLLM tells it on `/metrics`, in Prometheus' text format; the run's key opens that route like every other. An engine that
does not answer in time is left as it is: whether it lives is the supervisor's question.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence

import aiohttp

from siri_megatron.rollout.fleet import Engine
from siri_megatron.rollout.health import Key
from siri_megatron.rollout.kv_limits import KvLimits, Load
from siri_megatron.rollout.vllm_surface import KV_USAGE, METRICS, PREEMPTIONS, RUNNING, WAITING

log = logging.getLogger(__name__)

POLL_S = 1.0
TIMEOUT_S = 5.0
_LINE = re.compile(r"^(vllm:\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def parse_load(text: str) -> tuple[Load, list[str]]:
    """What a metrics page says, and the metrics that it lacks: such a one counts as 0, which is no load.

    A server with several engine cores has a line for each: counts are added, of the cache the fullest counts.
    """
    found: dict[str, list[float]] = {name: [] for name in (KV_USAGE, RUNNING, WAITING, PREEMPTIONS)}
    for name, value in _LINE.findall(text):
        if name in found:
            found[name].append(float(value))
    running, waiting, preemptions = (int(sum(found[name])) for name in (RUNNING, WAITING, PREEMPTIONS))
    return (Load(max(found[KV_USAGE], default=0.0), running, waiting, preemptions),
            [name for name, values in found.items() if not values])


class LoadWatch:
    """Polls the engines that have something in flight.

    Args:
        session: carries the run's key.
        members: the engines of this moment.
        heard: called after every round that asked somebody: limits may have moved.
    """

    def __init__(self, limits: KvLimits, session: aiohttp.ClientSession, members: Callable[[], Sequence[Engine]],
                 heard: Callable[[], None]) -> None:
        self._limits, self._session, self._members, self._heard = limits, session, members, heard
        self._preemptions: dict[Key, int] = {}
        self._figures: dict[str, float] = {}
        self._complained = False

    async def run(self) -> None:
        """As long as it is not cancelled. A new engine is asked at once: its counts need not begin at 0."""
        while True:
            asked = [engine for engine in self._members()
                     if self._limits.in_flight(engine.key) or engine.key not in self._preemptions]
            for failure in await asyncio.gather(*[self._ask(engine) for engine in asked], return_exceptions=True):
                if isinstance(failure, Exception):
                    log.error("an engine's load is not known: %r", failure, exc_info=failure)
            if asked:
                self._heard()
            await asyncio.sleep(POLL_S)

    def take_figures(self) -> dict[str, float]:
        """What was seen since the last call, under the names of `observe.metrics`; empty if nobody was asked."""
        figures, self._figures = self._figures, {}
        return figures

    async def _ask(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._session.get(engine.url + METRICS) as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError):
            return
        load, missing = parse_load(text)
        if missing and not self._complained:
            self._complained = True
            log.warning("%s%s (status %d) lacks %s: taken as 0, so that nothing is held back by it", engine.url,
                        METRICS, response.status, ", ".join(missing))
        if engine in self._members():  # it may have left while it answered
            self._hear(engine.key, load)

    def _hear(self, key: Key, load: Load) -> None:
        before = self._limits.limit(key)
        self._limits.hear(key, load, time.monotonic())
        limit = self._limits.limit(key)
        if limit != before:
            log.info("engine %d: at most %s samples in flight (%s); cache %.0f%% full, %d run, %d wait, %d preempted",
                     key[0], limit or "as many as there are", f"before {before}", 100 * load.kv_usage, load.running,
                     load.waiting, load.preemptions)
        new = load.preemptions - self._preemptions.get(key, load.preemptions)
        self._preemptions[key] = load.preemptions
        self._figures["fleet_preemptions"] = self._figures.get("fleet_preemptions", 0) + new
        peaks = {"fleet_kv_usage": load.kv_usage, "fleet_waiting": load.waiting,
                 "fleet_in_flight": self._limits.in_flight(key)}
        for name, value in peaks.items():
            self._figures[name] = max(self._figures.get(name, 0), value)
        if limit is not None:
            self._figures["fleet_limit"] = min(self._figures.get("fleet_limit", limit), limit)
