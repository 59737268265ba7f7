"""The figures of docs/cluster.md are those of `siri plan`."""

from __future__ import annotations

import json
import re

import pytest

from siri_megatron.cli import main
from siri_megatron.launch.spec import PACKAGE_ROOT

PAGE = (PACKAGE_ROOT / "docs" / "cluster.md").read_text()
ROWS = {row[0]: row[1:] for line in PAGE.splitlines() if line.count("|") == 10
        if (row := [cell.strip(" `") for cell in line.strip("|").split("|")])[0].endswith(".yaml")}


def figures(config: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the row of a config is made of, in the page's form."""
    assert main(["plan", str(PACKAGE_ROOT / "configs" / config), "--json",
                 f"model.path={PACKAGE_ROOT / 'configs' / 'models' / MODELS[config]}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    low, high = plan["caps"][0], plan["caps"][-1]
    assert (low["cap"], high["cap"]) == (8192, 16384)
    memory = max(cap["memory"]["learner"]["on_device"] for cap in plan["caps"])
    return [f"{memory / 1e9:.1f}", f"{high['memory']['kv_tokens']:,}", f"{low['step_s']:.0f}", f"{high['step_s']:.0f}",
            f"{high['generation_s'] / high['step_s']:.0%}", f"{high['push_s']:.1f}",
            f"{plan['run']['seconds'] / 3600:.0f}", f"{plan['run']['gpu_hours']:,.0f}"]


MODELS = {"r1-distill-1.5b.yaml": "deepseek-r1-distill-qwen-1.5b", "r1-distill-7b.yaml": "deepseek-r1-distill-qwen-7b",
          "llama-70b-plan.yaml": "llama-3.3-70b"}


@pytest.mark.parametrize("config", MODELS)
def test_the_table_is_the_plan(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ROWS[config] == figures(config, capsys)


def test_another_layout_has_other_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert ROWS["r1-distill-7b.yaml"] != figures("r1-distill-1.5b.yaml", capsys)


def test_files_and_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`((?:slurm|tools|tests|docs|configs|requirements)/[\w./-]+\w)`", PAGE)
    assert len(named) > 3
    assert [name for name in named if not (PACKAGE_ROOT / name).exists()] == []
