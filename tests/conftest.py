"""Fixtures shared by the whole suite. Modules beside this file are imported by name: `from engine_fleet import ...`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from browser import CHROMIUM, Browser, running_browser
from engine_fleet import EngineFleet, fleet_config, running_fleet, write_tiny_model
from hypothesis import settings
from ranks import Ranks

# Tests share the cores with engines and learner ranks; spinning threads of an idle pool would starve them.
torch.set_num_threads(1)
# For the same reason no example of a property has a deadline of its own.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A tab of a headless Chromium; skips, and says so, where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): pages are not opened")
    with running_browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two learner processes."""
    with Ranks(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """Two vLLM servers, started at the first use and shared by all: push your own weights before relying on any."""
    place = tmp_path_factory.mktemp("engines")
    model_dir = write_tiny_model(place / "model")
    with running_fleet(fleet_config(model_dir, place / "runs")) as fleet:
        yield fleet
