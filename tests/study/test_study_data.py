"""A study's tables, read back and checked."""

from __future__ import annotations

import pytest
from made_study import made, write, written

from siri_megatron.errors import DataError
from siri_megatron.study.data import Study, at_tokens, natural, read_study


@pytest.fixture(scope="module")
def study() -> Study:
    return made((3, 1, 2))


def test_reading_gives_what_was_written(tmp_path, study):
    assert read_study(written(tmp_path, study)) == study


def test_empty_cells_are_unknown(tmp_path, study):
    rows = [dict(row) for row in study.evaluations]
    rows[0]["acc:k=3"] = ""
    written(tmp_path, study)
    write(tmp_path / "evaluations.csv", rows)
    assert read_study(tmp_path).evaluations[0]["acc:k=3"] is None


def test_order_of_arms(study):
    extra = Study([{**row, "arm": "dler"} for row in study.of("siri")] + list(study.evaluations), study.steps)
    assert extra.arms == ["fixed", "siri", "monotone", "closed-loop", "dler"]
    assert (extra.decided, extra.explored) == (extra.arms[:4], ["dler"])


def test_names_stand_in_natural_order():
    assert sorted(["k=10", "k=9", "128", "32", "hard"], key=natural) == ["32", "128", "hard", "k=9", "k=10"]


def test_names_of_tiers_and_budgets(study):
    assert study.names("acc:") == [f"k={k}" for k in range(3, 10)]
    assert study.names("acc@") == ["32", "48", "64", "128"]


def test_cycles(study):
    assert study.cycles("siri") == [1, 2, 3]
    assert study.cycles("fixed") == []
    assert sorted(study.tagged("siri", "iter2-expanded")) == [1, 2, 3]


def test_whole(study):
    torn = Study([row for row in study.evaluations if (row["arm"], row["seed"], row["step"]) != ("siri", 2, 72)],
                 study.steps)
    assert torn.unfinished() == ["siri 2"]
    assert sorted(torn.end("siri")) == [1, 3]
    assert study.unfinished() == []


def test_at_tokens_by_hand():
    rows = [{"arm": "a", "seed": 1, "step": step, "sampled_tokens": float(tokens)}
            for step, tokens in ((0, 0), (12, 100), (24, 180), (36, 250))]
    study = Study(rows, [])

    def step(tokens: float, above: bool) -> int:
        return at_tokens(study, "a", {1: tokens}, above=above)[1]["step"]

    assert [step(tokens, False) for tokens in (0, 99, 100, 179, 250, 999)] == [0, 0, 12, 12, 36, 36]
    assert [step(tokens, True) for tokens in (0, 99, 100, 101, 250, 999)] == [0, 12, 12, 24, 36, 36]
    assert at_tokens(study, "a", {2: 100.0}) == {}
    assert at_tokens(study, "a", {1: -1.0}) == {}


def refused(tmp_path, study: Study, change) -> str:
    rows = [dict(row) for row in study.evaluations]
    written(tmp_path, study)
    write(tmp_path / "evaluations.csv", change(rows) or rows)
    with pytest.raises(DataError) as error:
        read_study(tmp_path)
    return str(error.value)


def test_one_row(tmp_path, study):
    message = refused(tmp_path, study, lambda rows: rows + rows[5:6])
    assert "closed-loop, seed 1, step 60 is there twice" in message


def test_same_problems(tmp_path, study):
    message = refused(tmp_path, study, lambda rows: rows[-1].update(problems=400))
    assert "500" in message
    assert "400" in message


@pytest.mark.parametrize(("key", "value"), [("accuracy", "nan"), ("accuracy", "high"), ("seed", "1.5"), ("step", "")])
def test_numbers_are_numbers(tmp_path, study, key, value):
    assert "evaluations.csv, line 4" in refused(tmp_path, study, lambda rows: rows[2].update({key: value}))


def test_missing_columns_and_tables(tmp_path, study):
    cut = [{key: value for key, value in row.items() if key != "train_seconds"} for row in study.evaluations]
    assert "no column train_seconds" in refused(tmp_path, study, lambda rows: cut)
    (tmp_path / "evaluations.csv").unlink()
    with pytest.raises(DataError, match="is not there"):
        read_study(tmp_path)


def test_no_rows(tmp_path, study):
    written(tmp_path, study)
    path = tmp_path / "steps.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="has no rows"):
        read_study(tmp_path)
