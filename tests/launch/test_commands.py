"""Commands inside: putting a run aside, and what `siri eval` evaluates."""

from __future__ import annotations

import os
from argparse import Namespace
from io import StringIO
from pathlib import Path

import pytest
import yaml
from launch_models import write_form
from rich.console import Console

from siri_megatron.errors import ConfigError
from siri_megatron.launch import commands
from siri_megatron.launch.evaluate import evaluation_config, model_directory
from siri_megatron.paths import RunDir

RAW = {"name": "tiny", "budget": {"l_min": 16, "l_max": 64, "cycle_steps": 4, "cycles": 1}, "optimizer": {"lr": 1e-4},
       "model": {"path": "start"}, "evaluation": {"budgets": [32, 64], "samples": 1}}


def options(target: Path, *overrides: str, **given: object) -> Namespace:
    return Namespace(**({"target": target, "overrides": list(overrides), "budgets": None, "samples": None,
                         "problems": None, "config": None, "suites": None, "resume": False} | given))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with two exports; the first one is the newer file."""
    paths = RunDir(tmp_path / "runs" / "tiny")
    for age, tag in enumerate(("iter1-expanded", "iter1-compressed")):
        made = write_form(paths.export / tag)
        os.utime(made / "config.json", (1000 - age, 1000 - age))
    paths.config.write_text(yaml.safe_dump(RAW | {"runs_dir": str(tmp_path / "runs")}))
    return paths


def test_run_stands_for_its_newest_export(run: RunDir) -> None:
    assert model_directory(run.root) == run.export / "iter1-expanded"
    write_form(run.export / ".iter2-compressed.part")  # a killed export
    assert model_directory(run.root) == run.export / "iter1-expanded"
    assert model_directory(run.export / "iter1-compressed") == run.export / "iter1-compressed"


def test_evaluation_takes_the_runs_config_and_the_options(run: RunDir) -> None:
    config, tag = evaluation_config(options(run.root, "seed=7", budgets=[32, 128], samples=4, problems=10))
    assert tag == "iter1-expanded"
    assert config.model.path == run.export / "iter1-expanded"
    assert config.evaluation.budgets == (32, 128)
    assert (config.evaluation.samples, config.evaluation.problems, config.seed) == (4, 10, 7)
    assert config.name == "tiny-eval-iter1-expanded"


def test_options_that_are_not_given_stay_as_in_the_run(run: RunDir) -> None:
    config, _ = evaluation_config(options(run.root))
    assert (config.evaluation.budgets, config.evaluation.samples) == ((32, 64), 1)


def test_second_evaluation_of_a_model_gets_a_name_of_its_own(run: RunDir) -> None:
    earlier = RunDir(run.root.with_name("tiny-eval-iter1-expanded"))
    earlier.evaluations.mkdir(parents=True)
    (earlier.evaluations / "iter1-expanded.json").write_text("{}")
    assert evaluation_config(options(run.root))[0].name == "tiny-eval-iter1-expanded-2"
    assert evaluation_config(options(run.root, "name=mine"))[0].name == "mine"


def test_resume_goes_on_with_the_newest_evaluation(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="no evaluation tiny-eval-iter1-expanded to go on with"):
        evaluation_config(options(run.root, resume=True))
    for name in ("tiny-eval-iter1-expanded", "tiny-eval-iter1-expanded-2"):
        RunDir(run.root.with_name(name)).evaluations.mkdir(parents=True)
        (RunDir(run.root.with_name(name)).root / "metrics.jsonl").write_text('{"step": 0}\n')
        assert evaluation_config(options(run.root, resume=True))[0].name == name
    assert evaluation_config(options(run.root, "name=mine", resume=True))[0].name == "mine"


SUITES = 'evaluation.suites=[{name: mine, data: mine.jsonl, samples: 8, budgets: [16]}, {name: other, data: o.jsonl}]'


def test_suites_of_the_config(run: RunDir) -> None:
    config, _ = evaluation_config(options(run.root, SUITES))
    assert [suite.name for suite in config.evaluation.suites] == ["mine", "other"]
    assert config.evaluation.problems == 256
    config, _ = evaluation_config(options(run.root, SUITES, samples=3, budgets=[8]))
    assert [(suite.samples, suite.budgets) for suite in config.evaluation.suites] == [(3, (8,))] * 2


def test_only_these_suites(run: RunDir) -> None:
    """By the config's name, or a known data set; the run's own problems only if asked for."""
    config, _ = evaluation_config(options(run.root, SUITES, suites=["mine", "gsm8k", "mine"]))
    mine, gsm8k = config.evaluation.suites
    assert (config.evaluation.problems, mine.name, mine.samples, gsm8k.data.split) == (0, "mine", 8, "test")
    assert gsm8k.data.resolved().path == "openai/gsm8k"
    assert evaluation_config(options(run.root, SUITES, suites=["mine"], problems=7))[0].evaluation.problems == 7
    with pytest.raises(ConfigError, match="there is no suite 'mime'") as caught:
        evaluation_config(options(run.root, SUITES, suites=["mime"]))
    assert "other" in caught.value.fix


def test_an_evaluation_reads_no_training_prompts(run: RunDir) -> None:
    """They may be gone, or on a hub out of reach."""
    raw = RAW | {"runs_dir": str(run.root.parent), "data": {
        "source": "dataset", "train": {"preset": "deepscaler"}, "eval": "e.jsonl", "fingerprint": "f"}}
    run.config.write_text(yaml.safe_dump(raw))
    data = evaluation_config(options(run.root))[0].data
    assert (data.train, data.fingerprint, data.eval.path) == (None, "", "e.jsonl")


def test_model_outside_a_run_needs_a_config(tmp_path: Path, run: RunDir) -> None:
    model = write_form(tmp_path / "runs" / "loose")
    with pytest.raises(ConfigError, match="add --config"):
        evaluation_config(options(model))
    assert evaluation_config(options(model, config=run.config))[0].model.path == model


def test_fresh_keeps_one_earlier_run(tmp_path: Path) -> None:
    paths = RunDir(tmp_path / "tiny")
    for number in range(3):
        paths.root.mkdir()
        (paths.root / "number").write_text(str(number))
        commands._put_aside(paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.previous"]
    assert (tmp_path / "tiny.previous" / "number").read_text() == "2"


def test_brackets_in_a_path_are_no_markup(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=20)
    assert not commands._already_complete(RunDir(tmp_path / "a[" / "b]"), console)
    assert console.file.getvalue() == f"{tmp_path}/a[/b]: no commit yet, starting from step 0\n"
