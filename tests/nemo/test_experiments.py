"""What an experiment consists of. No nemo-run."""

from __future__ import annotations

from pathlib import Path

import pytest

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.launch.job import Place
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.nemo.experiments import chain, sweep, train

PLACE = Place(Path("/there"), "python")
WARM_START = PACKAGE_ROOT / "configs" / "tiny-warmstart.yaml"


def tiny(*overrides: str) -> RunConfig:
    return configs.load(PACKAGE_ROOT / "configs" / "tiny.yaml", list(overrides))


def test_a_sweep_is_every_combination_and_one_comparison() -> None:
    *runs, last = sweep(tiny(), PLACE, {"budget.schedule": ["cosine", "constant"], "seed": [1, 2]})
    assert [task.name for task in runs] == ["tiny-schedulecosine-seed1", "tiny-schedulecosine-seed2",
                                            "tiny-scheduleconstant-seed1", "tiny-scheduleconstant-seed2"]
    assert [(task.job.config.budget.schedule, task.job.config.seed) for task in runs] == [
        ("cosine", 1), ("cosine", 2), ("constant", 1), ("constant", 2)]
    assert all(not task.needs for task in runs)
    assert (last.needs, last.after) == (tuple(task.name for task in runs), "end")
    assert [word for word in last.argv if word.startswith("/there/runs/tiny-s")] == [
        str(task.job.root) for task in runs]


def test_a_sweep_is_that_of_the_launch_section_if_no_other_is_given() -> None:
    names = [task.name for task in sweep(tiny("launch.slurm.sweep={seed: [3, 4]}"), PLACE)]
    assert names == ["tiny-seed3", "tiny-seed4", "comparison"]


@pytest.mark.parametrize(("axes", "said"), [({}, "a sweep of nothing"), ({"seed": ["x"]}, "seed = 'x'"),
                                            ({"nothing": [1]}, "nothing.*unknown key")])
def test_a_sweep_that_cannot_be_is_refused(axes: dict[str, list[int | str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(tiny(), PLACE, axes)


@pytest.mark.parametrize("override", ["launch.slurm.sweep={seed: [1, 2]}", "launch.slurm.chain=2"])
def test_one_run_is_one_job(override: str) -> None:
    with pytest.raises(ConfigError, match="`train` starts one job"):
        train(tiny(override), PLACE)


def test_a_chain_hands_each_model_on() -> None:
    tasks = chain(tiny("name=all"), WARM_START, PLACE)
    assert [(task.name, task.needs) for task in tasks] == [
        ("convert", ()), ("warm-start", ("convert",)), ("all", ("warm-start",)), ("evaluate", ("all",)),
        ("export", ("evaluate",))]
    assert "output=/there/runs/all-warm" in tasks[1].argv
    assert str(tasks[2].job.config.model.path) == "/there/runs/all-warm"
    assert tasks[3].argv[-1] == "/there/runs/all"
    assert "/there/runs/all/checkpoints/step-000072" in tasks[4].argv


def test_a_chain_refuses_now_what_would_fail_then() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        chain(tiny(), WARM_START, PLACE, ["optimizer.lr=-1"])
