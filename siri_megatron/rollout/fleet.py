"""The fleet as its files tell of it: who is up (fleet.json), who has which weights (pushed.json), who hangs (accused/).

fleet.json is the supervisor's. The other two are written by whoever gives engines their weights (learner rank 0, or
the driver of a run without learners) and heard by the supervisor; the collector reads the first two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from siri_megatron.errors import EngineError
from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir
from siri_megatron.rollout.health import Key


@dataclass(frozen=True)
class Engine:
    """A member of the fleet; `tp` is the number of its workers that receive weights."""

    index: int
    url: str
    tp: int = 1
    incarnation: int = 0
    suspect: bool = False

    @property
    def key(self) -> Key:
        return self.index, self.incarnation

    @property
    def name(self) -> str:
        return f"engine {self.index} at {self.url}"


@dataclass(frozen=True)
class Fleet:
    """The engines that are up, by index. The epoch rises when one joins or leaves."""

    epoch: int
    engines: tuple[Engine, ...]


@dataclass(frozen=True)
class Pushed:
    """The newest weights and the engines that have confirmed them."""

    version: str = ""
    keys: frozenset[Key] = frozenset()


def read_fleet(paths: RunDir) -> Fleet:
    """The present membership.

    Raises:
        EngineError: the supervisor has not published one.
    """
    raw = read_json(paths.fleet)
    if raw is None:
        raise EngineError(f"{paths.fleet} is not there", rule="rollouts need a fleet that serves",
                          fix="wait until the supervisor has published it; read the engines' logs")
    engines = [Engine(int(one["index"]), str(one["url"]).rstrip("/"), int(one.get("tp", 1)),
                      int(one.get("incarnation", 0)), one.get("state") == "suspect") for one in raw["engines"]]
    return Fleet(int(raw["epoch"]), tuple(sorted(engines, key=lambda engine: engine.index)))


def read_pushed(paths: RunDir) -> Pushed:
    """Who has the newest weights; nobody while a failed push is not repeated yet."""
    raw = read_json(paths.pushed)
    if raw is None:
        return Pushed()
    return Pushed(str(raw["version"]), frozenset((int(index), int(start)) for index, start in raw["engines"]))


def confirm(paths: RunDir, version: str, keys: Iterable[Key]) -> None:
    """These engines, and no others, have said that they serve `version`."""
    write_json(paths.pushed, {"version": version, "engines": sorted(keys)})


def withdraw(paths: RunDir) -> None:
    """No engine is known to have the newest weights."""
    paths.pushed.unlink(missing_ok=True)


def accuse(paths: RunDir, key: Key, why: str) -> None:
    """This engine did not do its part in time. The supervisor ends and restarts it."""
    write_json(paths.accused / f"{key[0]}.{key[1]}.json", {"why": why})


def accusations(paths: RunDir) -> dict[Key, str]:
    """All accusations of this launch; of former incarnations as well."""
    found: dict[Key, str] = {}
    for path in sorted(paths.accused.glob("*.json")):
        if path.name.startswith("."):
            continue  # being written
        index, incarnation, _ = path.name.split(".")
        found[int(index), int(incarnation)] = str((read_json(path) or {}).get("why", ""))
    return found
