"""The collector's HTTP application. Every route, known or unknown, asks for the run's key.

    POST /collect {"budget": {...}, "weight_version": "12"}    202; the step is collected in the background, beside
                                                               others if rollout.lag lets rank 0 order ahead
                  further {"caps": {"prompt": 64, ...}}        prompts whose cap is below the step's
    GET  /collect/12?wait=20                                   long poll: {"state", "progress", "stats" | "error"}
    POST /evaluate {"tag": "start", "weight_version": "12"}    202; writes evaluations/<tag>.json when done
    GET  /evaluate/start?wait=20                               long poll
    GET  /state                                                every job's state
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import DataError, EngineError, SiriError
from siri_megatron.files import on_disk, write_json
from siri_megatron.observe.spans import BusyLog, SpanLog
from siri_megatron.paths import RunDir
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.engine_guard import holds_key
from siri_megatron.rollout.eval_journal import discard_later
from siri_megatron.rollout.evaluation import Evaluator
from siri_megatron.rollout.fleet import Fleet, read_fleet, read_pushed
from siri_megatron.rollout.jobs import Conflict, JobBook

MAX_WAIT_S = 60.0
MAX_BODY = 64 * 2**20
"""Bytes of a request: caps of a hundred thousand prompts are two megabytes."""
FOLLOW_S = 0.2
"""Between two looks at the files that tell of the fleet."""
TAG = re.compile(r"[\w.-]{1,100}")


class CollectorService:
    """Routes to jobs, on a fleet that it follows as long as it lives.

    Args:
        collector, evaluator: None if the run has no such prompts; asking for its work is then an error.
        client: further arguments of `EngineClient`.
    """

    def __init__(self, paths: RunDir, key: str, collector: Collector | None, evaluator: Evaluator | None, *,
                 client: Mapping[str, Any]) -> None:
        self._paths, self._key, self._client = paths, key, client
        self._collector, self._evaluator = collector, evaluator
        self._jobs = JobBook()
        self._spans = SpanLog(paths.spans / "collector.jsonl", "collector")
        self._fleet: Fleet | None = None
        self._engines: EngineClient | None = None

    def application(self) -> web.Application:
        app = web.Application(middlewares=[key_guard(self._key), say_errors], client_max_size=MAX_BODY)
        app.add_routes([
            web.post("/collect", self._start_collect), web.get("/collect/{name}", self._poll("collect")),
            web.post("/evaluate", self._start_evaluate), web.get("/evaluate/{name}", self._poll("evaluate")),
            web.get("/state", self._state)])
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        return app

    async def _start_collect(self, request: web.Request) -> web.Response:
        body = await _body(request, "budget", "weight_version")
        budget, version = StepBudget.from_json(body["budget"]), str(body["weight_version"])
        collector = _there(self._collector, "training", "data.train")
        caps = collector.of_step(budget.step, _caps(body.get("caps", {}), budget.cap))
        discard_later(self._paths.evaluations, budget.step)

        async def work(progress: Progress) -> dict[str, Any]:
            with self._spans.span("collect", step=budget.step):
                return await collector.collect(budget, version, self._present_engines(), progress, caps)

        job = self._jobs.start(f"collect/{budget.step}", (asdict(budget), version, caps), work)
        collector.admitted(budget)
        return web.json_response(job.to_json(), status=202)

    async def _start_evaluate(self, request: web.Request) -> web.Response:
        body = await _body(request, "tag", "weight_version")
        tag, version = str(body["tag"]), str(body["weight_version"])
        if not TAG.fullmatch(tag):
            raise DataError(f"tag {tag!r} is no file name", rule="letters, digits, '_', '.', '-'", fix="rename it")
        evaluator, what = _there(self._evaluator, "held-out", "data.eval"), f"evaluation {tag}"

        async def work(progress: Progress) -> dict[str, Any]:
            with self._spans.span("evaluate", tag=tag):
                async with self._collector.right_of_way.evaluating(what) if self._collector else nullcontext():
                    report = await evaluator.evaluate(tag, version, self._present_engines(), progress)
            with on_disk(self._paths.evaluations):
                write_json(self._paths.evaluations / f"{tag}.json", report)
            evaluator.forget(tag)
            return report

        job = self._jobs.start(f"evaluate/{tag}", version, work)
        return web.json_response(job.to_json(), status=202)

    def _poll(self, kind: str) -> Handler:
        async def poll(request: web.Request) -> web.Response:
            name = f"{kind}/{request.match_info['name']}"
            job = self._jobs.get(name)
            if job is None:
                raise web.HTTPNotFound(text=json.dumps({"error": {"what": f"no job {name}"}}))
            await job.wait(_seconds(request.query.get("wait", "0")))
            return web.json_response(job.to_json())

        return poll

    async def _state(self, request: web.Request) -> web.Response:
        fleet = asdict(self._fleet) if self._fleet else None
        return web.json_response({"jobs": self._jobs.names(), "fleet": fleet})

    def _present_engines(self) -> EngineClient:
        """The client of the engines, which knows the present membership.

        Raises:
            EngineError: no membership has been published yet.
        """
        assert self._engines is not None
        self._fleet = read_fleet(self._paths)
        self._engines.follow(self._fleet, read_pushed(self._paths))
        return self._engines

    async def _follow(self) -> None:
        while True:
            with suppress(EngineError, OSError):  # not published yet; no descriptor free at this moment
                self._present_engines()
            await asyncio.sleep(FOLLOW_S)

    async def _open(self, app: web.Application) -> None:
        self._engines = EngineClient(self._key, busy=BusyLog(self._paths.spans), **self._client)
        self._following = asyncio.create_task(self._follow(), name="follow the fleet")

    async def _close(self, app: web.Application) -> None:
        await self._jobs.cancel_all()
        if self._engines is not None:
            self._following.cancel()
            await self._engines.close()


def key_guard(key: str) -> Any:
    """Middleware: 401 without `Authorization: Bearer <key>`, before routing tells whether there is such a path."""
    credential = f"Bearer {key}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not holds_key(request.raw_headers, credential):
            return web.json_response({"error": {"what": "the run key is missing or wrong"}}, status=401)
        return await handler(request)

    return guard


@web.middleware
async def say_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A refused request says why: what, rule, fix."""
    try:
        return await handler(request)
    except SiriError as error:
        told = {"kind": type(error).__name__, "what": error.what, "rule": error.rule, "fix": error.fix}
        return web.json_response({"error": told}, status=409 if isinstance(error, Conflict) else 400)


async def _body(request: web.Request, *names: str) -> Mapping[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise DataError(f"{request.path}: the body is not JSON: {error}") from None
    missing = [name for name in names if not isinstance(body, dict) or name not in body]
    if missing:
        raise DataError(f"{request.path}: the body lacks {', '.join(missing)}", rule=f"it has {', '.join(names)}")
    return dict(body)


def _caps(raw: Any, cap: int) -> dict[str, int]:
    """Caps a prompt, as they were sent.

    Raises:
        DataError: one is no number of tokens below the step's cap.
    """
    known = isinstance(raw, dict)
    bad = [at for at in raw.items() if type(at[1]) is not int or not 1 <= at[1] < cap] if known else [raw]
    if bad:
        raise DataError(f"caps has {bad[0]!r}, the step's cap is {cap}", rule="prompt -> tokens, 1 <= tokens < cap",
                        fix="send what budget.prompt_caps gives")
    return dict(raw)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise DataError(f"wait={text!r}", rule="wait is a number of seconds")
    return min(value, MAX_WAIT_S)


def _there(worker: Any, which: str, key: str) -> Any:
    if worker is None:
        raise DataError(f"the run has no {which} prompts", rule=f"data sets come from {key}", fix=f"set {key}")
    return worker
