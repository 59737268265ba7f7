"""Fixtures shared by the whole suite. Modules beside this file are imported by name: `from engine_fleet import ...`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser, running_browser
from dealt_together import DealtTogether
from engine_fleet import EngineFleet, fleet_config, watched_fleet, write_tiny_model
from hypothesis import settings
from ranks import Ranks

# Tests share the cores with engines and learner ranks; spinning threads of an idle pool would starve them.
torch.set_num_threads(1)
# For the same reason no example of a property has a deadline of its own.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real engines come first: they take longest, and the workers then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> DealtTogether:
    """With several workers: in the order from above."""
    config.option.loadscopereorder = False
    return DealtTogether(config, log)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A tab of a headless Chromium; skips, and says so, where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): pages are not opened")
    with running_browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a real small file system; skipped, visibly, where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small file system to fill: {done.stderr.strip()}")
        return place

    yield mount
    while subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False).returncode == 0:
        pass


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two learner processes."""
    with Ranks(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """Two vLLM servers, one of either kind, started at the first use and shared by all.

    Push your own weights before relying on any.

    What dies is restarted; who kills one waits until it is back. A busy machine makes none suspect. Requests may have
    priorities, as in a run with a lag; those that have none are served in the order in which they come.
    """
    place = tmp_path_factory.mktemp("engines")
    settings = {"kv_cache_gib": 1 / 32, "max_num_seqs": 64, "restart_backoff_s": 0.1, "max_restarts": 50,
                "suspect_s": 300, "dead_s": 300, "hang_s": 600, "extra_args": ["--scheduling-policy", "priority"]}
    with watched_fleet(fleet_config(write_tiny_model(place / "model"), place / "runs", engines=settings),
                       in_process=(1,)) as fleet:
        yield fleet
