"""A fake engine that takes weight pushes as vLLM does: by version alone, and with requests in flight."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from fake_engine import FakeEngine

from siri_megatron.data.digit_tokenizer import EOS_ID, VOCABULARY, encode


@dataclass
class PushedEngine(FakeEngine):
    """Answers after `delay_s` of generating, which stands still while it is paused.

    A response's first token is of the version at which its request began, the rest of the one at which it ended.
    """

    holds: range = range(0)
    """Requests, by their number, that do not end before a push meets them."""
    paused: bool = False
    control: list[str] = field(default_factory=list)
    flying: Counter[int] = field(default_factory=Counter)
    most: Counter[int] = field(default_factory=Counter)
    """By samples asked for: requests in flight now, and the most at a time."""
    met: int = 0
    """Requests that a push met."""

    def routes(self) -> list[web.RouteDef]:
        paths = ("pause", "resume", "collective_rpc", "init_weight_transfer_engine", "start_weight_update",
                 "update_weights", "finish_weight_update", "reset_prefix_cache")
        return [*super().routes(), web.get("/weight_info", self.weight_info),
                *[web.post(f"/{path}", self.command) for path in paths]]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        held = len(self.asked) in self.holds
        self.asked.append(body)
        began, n = self.version, body["sampling_params"]["n"]
        self.flying[n] += 1
        self.most[n] = max(self.most[n], self.flying[n])
        try:
            for _ in range(10):
                await asyncio.sleep(self.delay_s / 10)
                while self.paused or (held and not self.met):
                    await asyncio.sleep(0.01)
        finally:
            self.flying[n] -= 1
        choices = self._choices(body)
        for choice in choices:
            size = len(choice["token_ids"])
            choice["weight_versions"] = [{"version": began, "start": 0, "end": 1 if began != self.version else size}]
            if began != self.version and size > 1:
                choice["weight_versions"].append({"version": self.version, "start": 1, "end": size})
        return web.json_response({"choices": choices})

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Every second answer is right; without a seed they follow from the prompt alone."""
        total = sum(int(VOCABULARY[token]) for token in body["token_ids"] if VOCABULARY[token].isdigit())
        choices = super()._choices(body | {"sampling_params": {"seed": 0} | body["sampling_params"]})
        for choice in choices[::2]:
            choice["token_ids"][-2:] = [*encode(str(total % 10)), EOS_ID]
            choice["finish_reason"] = "stop"
            for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=True):
                entry["token_id"] = token
        return choices

    async def command(self, request: web.Request) -> web.StreamResponse:
        path = request.path[1:]
        self.control.append(path)
        body: dict[str, Any] = await request.json() if request.can_read_body else {}
        if path == "pause":
            assert dict(request.query) == {"mode": "keep", "clear_cache": "true"}
            self.paused = True
            self.met += self.flying.total()
        if path in ("start_weight_update", "update_weights", "finish_weight_update"):
            assert self.paused or not self.flying.total(), "weights change under a running request"
        if path == "finish_weight_update":
            self.version = str(body["weight_version"])
        if path == "resume":
            self.paused = False
        return web.json_response({"success": True})

    async def weight_info(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"weight_version": self.version})
