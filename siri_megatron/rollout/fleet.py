"""The fleet as fleet.json tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.errors import EngineError
from siri_megatron.files import read_json
from siri_megatron.paths import RunDir


@dataclass(frozen=True)
class Fleet:
    """One membership: it changes, with its epoch, when an engine joins or leaves."""

    epoch: int
    urls: tuple[str, ...]


def read_fleet(paths: RunDir) -> Fleet:
    """The present membership.

    Raises:
        EngineError: the supervisor has not published one.
    """
    raw = read_json(paths.fleet)
    if not raw or not raw.get("engines"):
        raise EngineError(f"{paths.fleet} names no engines", rule="rollouts need a fleet that serves",
                          fix="wait until the supervisor has published it; read the engines' logs")
    engines = sorted(raw["engines"], key=lambda engine: int(engine["index"]))
    return Fleet(int(raw["epoch"]), tuple(str(engine["url"]).rstrip("/") for engine in engines))
