"""Tables and words of results.md, against the rows that they are made of."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from made_study import FOUR, HARD, SCENE, made, without, written

from siri_megatron.study import tables
from siri_megatron.study.analysis import ACCURACY, QUESTIONS, SAMPLED, TOKENS, answers, arms
from siri_megatron.study.data import Study
from siri_megatron.study.reading import equal_tokens_sentence, results, sentence, write_results


@pytest.fixture(scope="module")
def study() -> Study:
    return made(warm_starts=4)


@pytest.fixture(scope="module")
def page(study) -> str:
    return results(study, "A study", "confirmatory", "Plan configs/study/made.yaml, 0123456789abcdef.")


def test_numbers_are_written_with_their_sign():
    assert [tables.signed(value) for value in (1.25, -0.96, 0.04, -0.04, -1234.5)] == [
        "+1.2", "−1.0", "0.0", "0.0", "−1,234.5"]
    assert tables.percent_more(0.75) == "−25.0%"
    assert tables.difference(-0.05, ACCURACY) == "−5.0"
    assert tables.difference(-98_223.4, SAMPLED) == "−98,223"
    assert [tables.p_text(p) for p in (None, 0.0004, 0.025)] == ["–", "< 0.001", "0.025"]


def test_every_table_has_full_rows(page):
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) > 15
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, block[0]


def test_ends_table(study):
    head, rows = tables.ends_table(study, HARD).head, tables.ends_table(study, HARD).rows
    assert [row[0] for row in rows] == ["start", *FOUR]
    values = [100 * row["accuracy"] for row in study.evaluations if (row["arm"], row["step"]) == ("fixed", 72)]
    cells = dict(zip(head, rows[1], strict=True))
    assert cells["accuracy, %"] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert "accuracy@64, %" in head
    assert "accuracy@128, %" not in head


def test_exploratory_table(study):
    table = tables.exploratory_table(study, HARD, ["siri"])
    values = [row["mean_tokens"] for row in study.evaluations if (row["arm"], row["step"]) == ("siri", 72)]
    assert table.rows[0][3] == f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
    delta = arms(study, "fixed", "siri", TOKENS).difference.value
    assert table.rows[0][-1] == tables.difference(delta, TOKENS)


def test_cycles_table_is_in_order_of_training(study):
    table = tables.cycles_table(study, "siri", HARD)
    assert [row[1] for row in table.rows] == ["0", "12", "24", "36", "48", "60", "72"]


def test_tier_tables(study):
    assert [row[0] for row in tables.tier_differences(study, "acc").rows] == [
        "siri − fixed", "siri − monotone", "closed-loop − siri", "monotone − fixed", "closed-loop − fixed"]
    assert tables.tiers_table(study, "tokens").head[2:] == ("k=3", "k=4", "k=5", "k=6", "k=7", "k=8", "k=9")


def test_warm_starts_table(study):
    found = answers(study, HARD)
    table = tables.warm_starts_table(study, found[0].parts)
    assert table.head[1:] == ("warm start 1", "warm start 2", "warm start 3", "warm start 4", "95% t over warm starts")
    assert tables.warm_starts_table(made(steps=False), found[0].parts) is None


def test_where_each_warm_start_began_and_ended(study):
    table = tables.warm_start_ends_table(study, ["fixed", "siri"])
    assert [row[:2] for row in table.rows] == [["1", "3"], ["2", "3"], ["3", "3"], ["4", "3"]]
    ends = study.end("siri")
    mine = [row["accuracy"] for seed, row in ends.items() if study.warm_starts[seed] == 2]
    assert table.rows[1][table.head.index("siri: accuracy, %")] == f"{100 * sum(mine) / len(mine):.1f}"


def test_a_claim_without_a_warm_start_is_the_claim_of_the_other_seeds(study):
    part = answers(study, HARD)[0].parts[0]
    table = tables.without_warm_start_table(study, [part])
    others = [value for seed, value in zip(part.comparison.seeds, part.comparison.differences, strict=True)
              if study.warm_starts[seed] != 3]
    assert len(others) == 9
    assert table.rows[0][3].startswith(tables.difference(sum(others) / 9, part.comparison.measure))
    assert table.rows[0][3] != table.rows[0][1]  # negative control: leaving out another one is another figure


def test_the_page_says_what_the_rules_decide(study, page):
    for answer in answers(study, HARD):
        assert f"| {answer.question}. {QUESTIONS[answer.question]} | **{answer.decision.verdict}** |" in page
        assert sentence(study, answer, HARD) in page
    assert page.startswith("# A study\n\nPlan configs/study/made.yaml, 0123456789abcdef.\n")
    assert "Hard tiers: k=8, k=9." in page
    assert "Exploratory arms" not in page
    assert page == results(study, "A study", "confirmatory", "Plan configs/study/made.yaml, 0123456789abcdef.")


def test_figures_of_the_first_sentence(study):
    said = sentence(study, answers(study, HARD)[0], HARD)
    end = {arm: list(study.end(arm).values()) for arm in ("siri", "fixed")}
    means = {arm: np.mean([row["accuracy"] for row in rows]) for arm, rows in end.items()}
    assert f"siri {means['siri']:.1%}, fixed {means['fixed']:.1%}" in said
    logs = [math.log(a["mean_tokens"] / b["mean_tokens"]) for a, b in zip(*end.values(), strict=True)]
    assert tables.percent_more(math.exp(np.mean(logs))) in said
    assert said.startswith("**Shown.**")


def test_equal_tokens_hold_on_both_sides_or_not_at_all(study):
    assert "the interval lies above the margin" in equal_tokens_sentence(study)
    worse = made(scene={**SCENE, "siri": {**SCENE["siri"], "accuracy": 0.72}})
    assert "it is not so on both sides" in equal_tokens_sentence(worse)
    assert "no interval" in equal_tokens_sentence(without(study, lambda row: row["arm"] != "siri"))


def test_a_missing_arm_is_said(study):
    page = results(without(study, lambda row: row["arm"] != "closed-loop"), "A study", "confirmatory")
    assert re.search(r"\| 4\. .* \| \*\*no decision\*\* \|", page)
    assert "**No decision**: an arm is missing." in page


def test_an_unfinished_run_is_named(study):
    torn = without(study, lambda row: (row["arm"], row["seed"], row["step"]) != ("siri", 2, 72))
    assert "in no comparison: siri 2." in results(torn, "A study", "confirmatory")
    assert "in no comparison" not in results(study, "A study", "confirmatory")


def test_exploration_decides_nothing():
    scene = {"fixed": SCENE["fixed"], "siri": SCENE["siri"], "dler": SCENE["siri"]}
    page = results(made((1, 2, 3), scene=scene), "Looked at", "exploratory")
    assert "nothing here is decided" in page
    assert "What the rules say" not in page
    assert [arm for arm in scene if f"\n| {arm} | 3 |" in page] == list(scene)


def test_extra_arms_of_a_confirmatory_study_stand_apart(study):
    more = made((1, 2, 3, 4, 5, 6), scene={**SCENE, "leash": SCENE["siri"]})
    page = results(more, "A study", "confirmatory")
    assert "\n| leash | 6 |" in page.split("## Exploratory arms")[1]
    assert answers(more, HARD) != []


def test_files(tmp_path):
    found = write_results(written(tmp_path, made((1, 2, 3, 4, 5))), "A study", "confirmatory")
    assert [path.name for path in found] == [
        "results.md", "study.svg", "held-out.svg", "pareto.svg", "tiers.svg", "training.svg"]
    assert all(path.stat().st_size > 1000 for path in found)
    for name in re.findall(r"\]\((.*?\.svg)\)", found[0].read_text()):
        assert (tmp_path / name).is_file()
