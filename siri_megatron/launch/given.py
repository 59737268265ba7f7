"""Engines that somebody else started (`engines.urls`): asked whether they suit the run, then watched, never ended.

They pass through the same states as the run's own (`rollout/health.py`). What stands for a restart is that one comes
back: whoever started it may start it again at the same address; until then it is `restarting`.

Invariant:
    another_process_is_another_engine: they are asked over one connection each, which is kept. If it breaks, the process
        has gone, even if another one answers at once: that one lacks the weights.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from siri_megatron.config import RunConfig
from siri_megatron.config.addresses import is_local
from siri_megatron.errors import ConfigError
from siri_megatron.launch.fleet import PROBE_EVERY_S, PROBE_TIMEOUT_S, Probe, answered
from siri_megatron.launch.spec import ProcessSpec
from siri_megatron.rollout.engine_api import SERVED_MODEL
from siri_megatron.rollout.vllm_surface import (
    HEALTH,
    INIT_TRANSFER,
    MODELS,
    RELEASES,
    UNTOUCHED,
    VERSION,
    WEIGHT_INFO,
    WORLD_SIZE,
)

GONE = 0
ASK_S = 20.0
FIX = "start it with `siri engine CONFIG --host HOST --port PORT --key-file FILE`, of the run's CONFIG and key file"


class HeldProbe(Probe):
    """Asks over one connection. `breaks`: how often one broke that had brought an answer."""

    breaks = 0

    def _ask_server(self) -> None:
        answered = False
        address = urlsplit(self._url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PROBE_TIMEOUT_S)
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                connection.request("GET", HEALTH, headers={"Authorization": f"Bearer {self._key}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered_at, answered = asked, True
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if answered and not isinstance(error, TimeoutError):  # a server that is slow has not gone
                    self.breaks, answered = self.breaks + 1, False
            self._stop.wait(PROBE_EVERY_S)
        connection.close()


class GivenEngine:
    """What the fleet's watch has in place of a process of its own."""

    def __init__(self, spec: ProcessSpec, probe: HeldProbe) -> None:
        self.spec, self._probe, self._breaks, self._given_up = spec, probe, probe.breaks, False
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        spec.log.write_text(self.log_tail())

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def pid(self) -> int:
        """None of this machine."""
        return 0

    def lost(self) -> str:
        """Why it is gone, though nobody has waited for an answer in vain; empty while it is not."""
        broken = self._probe.breaks > self._breaks
        return f"has ended: the connection to {self.spec.url} broke" if broken else ""

    def poll(self) -> int | None:
        """None until it was given up."""
        return GONE if self._given_up else None

    def stop(self) -> None:
        """It goes on without this run."""

    def kill(self) -> None:
        """Give it up; it may come back as another incarnation."""
        self._given_up = True

    def log_tail(self, limit: int = 0) -> str:
        return f"{self.role} at {self.spec.url} was started by somebody else; its log is where it runs\n"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


def check_given(config: RunConfig, *, trained: bool) -> tuple[int, ...]:
    """The tensor-parallel size of each engine of `engines.urls`, once all of them were found to suit the run.

    Args:
        trained: learners push weights; else those that the engines have are sampled.

    Raises:
        ConfigError: the first thing that is wrong with one: silent, unguarded, another key, model, context, version or
            back end, or out of the push's reach.
    """
    key = read_key_file(config.engines.key_file)
    _check_apart(config.engines.urls)
    for url in config.engines.urls:
        check_reach(config, url)
    versions = {url: _check_server(url, key) for url in config.engines.urls}
    if len(set(versions.values())) > 1:
        raise ConfigError(f"the engines have several versions of vLLM: {versions}",
                          rule="all engines of a run are of one release", fix="start them in the same environment")
    for url in config.engines.urls:
        _check_model(url, config, key)
        if trained:
            _check_transfer(url, config, key)
        else:
            _check_untouched(url, key)
    return tuple(int(_asked(url, key, "GET", WORLD_SIZE).body["world_size"]) for url in config.engines.urls)


def read_key_file(path: Path | None) -> str:
    """The key of the given engines.

    Raises:
        ConfigError: the file is not there, or empty.
    """
    try:
        key = path.read_bytes().strip() if path is not None and path.is_file() else None
    except OSError as error:
        raise _no_key(path, f"cannot be read ({error.strerror})") from None
    if not key or not re.fullmatch(rb"[!-~]+", key):  # it goes into a header
        raise _no_key(path, "is no file" if key is None else "is empty" if not key else "holds more than one word")
    return key.decode()


def _no_key(path: Path | None, why: str) -> ConfigError:
    return ConfigError(f"engines.key_file={path} {why}",
                       rule="engines.urls are asked with the key that they were started with: one word of ASCII",
                       fix="give the --key-file of `siri engine` (on a file system that all nodes share)")


def _check_apart(urls: Sequence[str]) -> None:
    """No two are one server under two names: it would take two places in a push. Raises: ConfigError."""
    found: dict[str, str] = {}
    for url in urls:
        parts = urlsplit(url)
        try:
            known = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
        except OSError:
            continue  # that it answers nothing is said where it is asked
        places = {" port ".join(map(str, place[4][:2])) for place in known}
        if twice := sorted(places & found.keys()):
            raise ConfigError(f"engines.urls has {found[twice[0]]} and {url}, both {twice[0]}",
                              rule="each engine has an address of its own", fix="leave one out")
        found |= dict.fromkeys(places, url)


def check_reach(config: RunConfig, url: str) -> None:
    """The engine's workers can be pushed to. Raises: ConfigError."""
    host, push = urlsplit(url).hostname or "", config.push.backend
    if push == "shm" and not _on_this_machine(host):
        raise ConfigError(f"push.backend=shm, and the engine at {url} is on another machine",
                          rule="shared memory reaches engines of this machine only",
                          fix="set push.backend=gloo or nccl")
    one_node = config.launch.nodes == 1  # on several nodes the head's address takes the place of engines.host
    if push != "shm" and not is_local(host) and is_local(config.engines.host) and one_node:
        raise ConfigError(f"engines.host={config.engines.host}, and the engine at {url} is on another machine",
                          rule="its workers connect to the learners at engines.host",
                          fix="set engines.host to this machine's address on the network of the engines")


def _on_this_machine(host: str) -> bool:
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _check_server(url: str, key: str) -> str:
    """It answers, only to the key; returns its release of vLLM."""
    if _ask(url, "", "GET", VERSION).status != 401:
        raise ConfigError(f"the engine at {url} answers {VERSION} without a key", fix=FIX,
                          rule="every route of every engine asks for the run's key")
    version = str(_asked(url, key, "GET", VERSION).body["version"]).partition("+")[0]
    if version not in RELEASES:
        raise ConfigError(f"the engine at {url} is vLLM {version}", rule=f"engines are vLLM {' or '.join(RELEASES)}",
                          fix="install one of these where it runs")
    return version


def _check_model(url: str, config: RunConfig, key: str) -> None:
    cards: list[Mapping[str, Any]] = _asked(url, key, "GET", MODELS).body["data"]
    card = next((card for card in cards if card["id"] == SERVED_MODEL), None)
    if card is None:
        raise ConfigError(f"the engine at {url} serves {[card['id'] for card in cards]}, not {SERVED_MODEL!r}",
                          rule="the policy is asked for by that name", fix=FIX)
    if Path(card["root"]).resolve() != config.model.path.resolve():
        raise ConfigError(f"the engine at {url} was started on {card['root']}, the run's model.path is "
                          f"{config.model.path}", rule="engines and learners start from one directory", fix=FIX)
    if card["max_model_len"] < config.max_model_len:
        raise ConfigError(f"the engine at {url} has max_model_len={card['max_model_len']}, the run needs "
                          f"{config.max_model_len}", rule="prompt + largest cap fit every engine's context", fix=FIX)


def _check_transfer(url: str, config: RunConfig, key: str) -> None:
    """The weight-transfer routes are there, and of our back end, which every transport uses."""
    if _ask(url, key, "GET", WEIGHT_INFO).status != 200:
        raise ConfigError(f"the engine at {url} has no route {WEIGHT_INFO}",
                          rule="weights are pushed through vLLM's transfer routes (VLLM_SERVER_DEV_MODE=1)", fix=FIX)
    said = _ask(url, key, "POST", INIT_TRANSFER, {"init_info": {}})  # ours takes it as: no connection
    if said.status != 200:
        raise ConfigError(f"the engine at {url} answers {INIT_TRANSFER} with {said.status}: {said.body}",
                          rule=f"push.backend={config.push.backend} needs engines with our extension", fix=FIX)


def _check_untouched(url: str, key: str) -> None:
    """It has the weights that it was started with: nobody will give it others."""
    if (version := _asked(url, key, "GET", WEIGHT_INFO).body["weight_version"]) != UNTOUCHED:
        raise ConfigError(f"the engine at {url} has weights called {version!r}, of an earlier run",
                          rule="without learners the weights are those of model.path", fix="end it and start it again")


def _asked(url: str, key: str, method: str, route: str) -> Answer:
    """An answer with status 200."""
    answer = _ask(url, key, method, route)
    if answer.status == 401:
        raise ConfigError(f"the engine at {url} refuses the key of engines.key_file",
                          rule="all engines of a run have one key, which becomes the run's",
                          fix="give the --key-file that it was started with, or start it again with this one")
    if answer.status != 200:
        raise ConfigError(f"the engine at {url} answers {route} with {answer.status}: {answer.body}",
                          rule="engines are vLLM servers with the control routes", fix=FIX)
    return answer


def _ask(url: str, key: str, method: str, route: str, body: Any = None) -> Answer:
    try:
        with answered(url, key, method, route, body, timeout_s=ASK_S) as answer:
            return Answer(answer.status, _decoded(answer.read()))
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"no engine answers at {url}: {type(error).__name__}: {error}",
                          rule="engines.urls serve before the run starts", fix=FIX) from None


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content[:300].decode(errors="replace")
