from __future__ import annotations

import os
from pathlib import Path

import pytest

from siri_megatron import config as configs

TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"


def test_saved_config_is_read_back(tmp_path):
    saved = configs.load(TINY, ["seed=7"])
    configs.save(saved, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_kill_while_saving_leaves_the_former_config(tmp_path, monkeypatch):
    """A resume rewrites the config of the run directory, and reads it first the next time."""
    first = configs.load(TINY)
    configs.save(first, tmp_path / "config.yaml")

    def killed(descriptor: int) -> None:
        """The text lies in a temporary file, which is cut short before it takes the config's place."""
        os.ftruncate(descriptor, 20)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        configs.save(configs.load(TINY, ["learner.tp=2"]), tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == first


def test_flat_by_dotted_keys():
    assert configs.flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
