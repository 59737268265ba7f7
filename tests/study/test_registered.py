"""docs/study/plan.md registers the plans that were decided on; a plan that changes is another one."""

from __future__ import annotations

import re
from pathlib import Path

from siri_megatron.study.plan import fingerprint, load_plan

REGISTERED = re.compile(r"\| `(configs/study/[\w-]+\.yaml)`, confirmatory \| `([0-9a-f]{16})` \|")


def test_the_confirmatory_plans_are_those_that_were_registered() -> None:
    registered = dict(REGISTERED.findall(Path("docs/study/plan.md").read_text()))
    plans = {str(path): load_plan(path) for path in sorted(Path("configs/study").glob("*.yaml"))}
    confirmatory = {path: fingerprint(plan) for path, plan in plans.items() if plan.kind == "confirmatory"}
    assert registered == confirmatory
