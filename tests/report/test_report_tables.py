"""Tables behind the figures, against sums written out."""

from __future__ import annotations

import itertools
import math

from report_runs import evaluation, record

from siri_megatron.observe.stages import STAGES
from siri_megatron.report.read import known
from siri_megatron.report.tables import (
    MOST_PHASES,
    budgets_table,
    checkpoints_table,
    curves_table,
    kind_of,
    phases_table,
    stages_table,
    steps_table,
    tiers_table,
    widths_table,
)


def test_sums_are_of_all_steps():
    records = [record(step, steps=1900) for step in range(1900)]
    rows = steps_table(records)
    assert len(rows) < 1900
    for row in (rows[100], rows[-1]):
        so_far = [sum(one["tokens"] for one in records[:step + 1])
                  for step in range(row["first_step"], row["last_step"] + 1)]
        assert math.isclose(row["tokens_so_far"], sum(so_far) / len(so_far))


def test_no_curve_a_budget_among_the_steps():
    assert not any(isinstance(value, dict) for row in steps_table([record(0, steps=1)]) for value in row.values())


def test_curves_cover_all_steps():
    records = [known(record(step, steps=1000)) for step in range(1000)]
    rows = [row for row in curves_table(records) if row["budget"] == 512]
    assert rows[0]["step"] == 0
    assert rows[-1]["end"] == 1000
    assert all(one["end"] == other["step"] for one, other in itertools.pairwise(rows))
    column = records[:rows[0]["end"]]
    assert math.isclose(rows[0]["value"], sum(one["budget_accuracy"][512] for one in column) / len(column))


def test_widths_by_counting():
    records = [known(record(step, steps=1000, widths_used={"64": 1 + step % 3, "128": 1})) for step in range(1000)]
    rows = [row for row in widths_table(records) if row["width"] == 64]
    column = range(rows[1]["step"], rows[1]["end"])
    narrow = sum(1 + step % 3 for step in column)
    assert math.isclose(rows[1]["share"], narrow / (narrow + len(column)))
    assert rows[-1]["end"] == 1000
    assert widths_table([known(record(0, steps=1, widths_used={}))]) == []


def test_many_widths_share_rows():
    records = [known(record(step, steps=50, widths_used={str(64 + step): 1})) for step in range(50)]
    rows = widths_table(records)
    assert len(rows) == 50
    assert sorted({row["width"] for row in rows}) == [66, 69, 72, 75, 78, 81, 84, 87, 90, 93, 96, 99, 102, 105, 108,
                                                      111, 113]
    assert all(row["width"] >= 64 + row["step"] for row in rows)


def test_stages_add_up():
    records = [record(step, steps=40, cycle_steps=40) for step in range(40)]
    events = [{"ts": 0, "kind": "evaluation", "step": 0, "seconds": 7.0},
              {"ts": 0, "kind": "evaluation", "step": 20, "seconds": 5.0},
              {"ts": 0, "kind": "commit", "step": 40, "seconds": 3.0},
              {"ts": 0, "kind": "engines_ready", "step": None, "seconds": 99.0}]
    first, second = phases_table(records, events)
    assert (first["start"], first["end"], second["start"], second["end"]) == (0, 20, 20, 40)
    assert (first["evaluation_s"], second["evaluation_s"], second["commit_s"]) == (12.0, 0.0, 3.0)
    shares = stages_table([first, second])
    assert len(shares) == 2 * len(STAGES)
    assert math.isclose(sum(row["seconds"] for row in shares), 40 * 73.0 + 15.0)
    assert math.isclose(sum(row["share"] for row in shares if row["number"] == 0), 1.0)


def test_phases_bounded():
    records = [record(step, steps=1000, cycle_steps=2) for step in range(1000)]
    rows = phases_table(records)
    assert len(rows) <= MOST_PHASES
    assert [row["start"] for row in rows[1:]] == [row["end"] for row in rows[:-1]]
    assert rows[0]["name"] == "1 compression to 3 compression"
    assert rows[0]["phase"] is None
    assert sum(row["training_s"] for row in rows) == 30_000.0


def test_speeds_leave_out_reused_steps():
    records = [record(step, steps=4, reused=step == 0, tokens=100, generation_s=1.0 + 9 * (step == 0))
               for step in range(4)]
    assert phases_table(records)[0]["generation_speed"] == 100.0


def test_records_without_anything():
    rows = phases_table([{"step": 0}, {"step": 1}])
    assert rows[0]["name"] == "unknown"
    assert rows[0]["first_cap"] is None
    assert steps_table([{"step": 3}])[0]["step"] == 3
    assert curves_table([{"step": 0}]) == []


def test_checkpoints_are_named():
    tags = ("start", "iter1-compressed", "iter1-expanded", "step-7")
    rows = checkpoints_table([evaluation(tag, 0.5, 100) for tag in tags])
    assert [row["name"] for row in rows] == ["", "SIRI-low", "SIRI-high", ""]
    assert [kind_of(tag) for tag in tags] == ["start", "end of compression", "end of expansion", "other"]


def test_evaluations_without_intervals():
    one = evaluation("start", 0.5, 100, accuracy_ci=None, mean_tokens_ci=None)
    assert checkpoints_table([one])[0]["accuracy_low"] is None
    assert [row["budget"] for row in budgets_table([one])] == [256, 512, 1024, 2048]
    assert {row["tier"] for row in tiers_table([one])} == {"easy", "hard"}
