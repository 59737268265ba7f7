"""The studies in docs/study say what their tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from siri_megatron.study.data import read_study
from siri_megatron.study.reading import SUMMARY, results

STUDIES = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "docs" / "study").glob("*/results.md"))


@pytest.mark.parametrize("directory", STUDIES, ids=lambda directory: directory.name)
def test_results_are_those_of_the_tables(directory):
    """Title and origin come from the plan; everything below from the two CSV files."""
    page = (directory / "results.md").read_text()
    title, origin = page.split("\n\n")[:2]
    kind = "exploratory" if "nothing here is decided" in page else "confirmatory"
    assert page == results(read_study(directory), title.removeprefix("# "), kind, origin)
    assert (directory / SUMMARY.name).is_file() == (kind == "confirmatory")
