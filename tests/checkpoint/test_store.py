"""Commits of real learner ranks: resume is bit-exact, layouts may change, and a kill leaves only debris."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learners import Weights, run_config, same, settings, train, weights
from ranks import Rank, Ranks

from siri_megatron.assemble import resume_point
from siri_megatron.checkpoint import saver, store
from siri_megatron.checkpoint.record import write_record
from siri_megatron.checkpoint.sums import first_damaged, sum_of
from siri_megatron.config import AlgorithmConfig, RunConfig
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir


def trained_and_committed(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> tuple[Weights, Weights]:
    """Three steps, commit, two more steps: weights at the commit and at the end."""
    with rank.learner(given) as learner:
        train(learner, range(3))
        saver.save(RunDir(root), learner, config, step=3, tag=None, decisions={"controller": {"version": 1}})
        committed = weights(learner)
        train(learner, range(3, 5))
        return committed, weights(learner)


def restored_and_trained(rank: Rank, given: LearnerSettings, root: Path) -> tuple[Weights, Weights, int]:
    record = store.latest(RunDir(root))
    assert record is not None
    with rank.learner(given) as learner:
        store.restore(RunDir(root), learner, record)
        restored, updates = weights(learner), learner.updates
        train(learner, range(3, 5))
        return restored, weights(learner), updates


def committed_at_once(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> Weights:
    """A commit before the first optimizer step, then three steps: the weights at the end."""
    with rank.learner(given) as learner:
        saver.save(RunDir(root), learner, config, step=0, tag=None, decisions={"controller": {"version": 0}})
        train(learner, range(3))
        return weights(learner)


def restored_at_once(rank: Rank, given: LearnerSettings, root: Path) -> Weights:
    record = store.latest(RunDir(root))
    assert record is not None
    with rank.learner(given) as learner:
        store.restore(RunDir(root), learner, record)
        train(learner, range(3))
        return weights(learner)


def trained_without_commit(rank: Rank, given: LearnerSettings) -> Weights:
    with rank.learner(given) as learner:
        train(learner, range(3))
        return weights(learner)


@pytest.mark.parametrize(("layout", "dtype"), [("pp", "float32"), ("tp", "bfloat16")])
def test_a_commit_before_the_first_update_can_be_resumed(ranks: Ranks, model_dir: Path, tmp_path: Path, layout: str,
                                                         dtype: str) -> None:
    """A stop during the first evaluation or generation commits a state that no optimizer step has touched."""
    given = settings(model_dir, {layout: 2}, dtype)
    never_stopped = ranks.run(trained_without_commit, given)
    saved = ranks.run(committed_at_once, given, run_config(model_dir), tmp_path)
    resumed = ranks.run(restored_at_once, given, tmp_path)
    for expected, first, second in zip(never_stopped, saved, resumed, strict=True):
        assert same(first, expected)
        assert same(second, expected)


@pytest.mark.parametrize(("layout", "dtype"), [("tp", "float32"), ("pp", "float32"), ("dp", "float32"),
                                               ("tp", "bfloat16")])
def test_resume_is_bit_exact(ranks: Ranks, model_dir: Path, tmp_path: Path, layout: str, dtype: str) -> None:
    """A restored learner ends with the same bits as one that was never stopped (moments, step and warm-up included)."""
    given = settings(model_dir, {layout: 2}, dtype)
    committed, ended = ranks.run(trained_and_committed, given, run_config(model_dir), tmp_path)[0]
    restored, again, updates = ranks.run(restored_and_trained, given, tmp_path)[0]
    assert updates == 3
    assert same(restored, committed)
    assert same(again, ended)
    assert not same(committed, ended)


def test_another_layout_reads_the_same_weights(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    """TP2 -> PP2: the same bits; training on stays within rounding (sums have another order)."""
    committed, ended = ranks.run(trained_and_committed, settings(model_dir, {"tp": 2}), run_config(model_dir),
                                 tmp_path)[0]
    restored, again, _ = ranks.run(restored_and_trained, settings(model_dir, {"pp": 2}), tmp_path)[0]
    assert same(restored, committed)
    assert max((again[name] - ended[name]).abs().max().item() for name in ended) < 1e-5


def forgetful(rank: Rank, given: LearnerSettings, root: Path) -> Weights:
    """Negative control: weights are restored, AdamW's moments are not."""
    record = store.latest(RunDir(root))
    assert record is not None
    with rank.learner(given) as learner:
        store.restore(RunDir(root), learner, record)
        for optimizer in getattr(learner.optimizer, "chained_optimizers", [learner.optimizer]):
            optimizer.optimizer.state.clear()
        train(learner, range(3, 5))
        return weights(learner)


def test_lost_moments_would_be_noticed(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    given = settings(model_dir, {"tp": 2})
    _, ended = ranks.run(trained_and_committed, given, run_config(model_dir), tmp_path)[0]
    assert not same(ranks.run(forgetful, given, tmp_path)[0], ended)


def steered(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> dict[str, Any]:
    """A commit after an entropy below the target: the weight of the bonus has moved."""
    with rank.learner(given) as learner:
        learner.entropy.observe(0.25)
        saver.save(RunDir(root), learner, config, step=1, tag=None, decisions={"controller": {}})
        return learner.state()


def restored_state(rank: Rank, given: LearnerSettings, root: Path) -> list[Any]:
    """The rest of the learner's state before and after the newest commit is read, and the weight of the bonus then."""
    record = store.latest(RunDir(root))
    assert record is not None
    with rank.learner(given) as learner:
        fresh = learner.state()
        store.restore(RunDir(root), learner, record)
        return [fresh, learner.state(), learner.entropy.weight(0.0)]


def test_the_weight_of_the_entropy_bonus_is_in_the_commit(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    """Saved at PP2, read at DP2, on every rank."""
    algorithm = AlgorithmConfig(entropy_target=0.5, entropy_coef=0.02, entropy_delta=0.01)
    pp, dp = (replace(settings(model_dir, {layout: 2}), algorithm=algorithm) for layout in ("pp", "dp"))
    saved = ranks.run(steered, pp, run_config(model_dir), tmp_path)[0]
    assert saved == {"updates": 0, "entropy": {"coefficient": 0.03, "entropy": 0.25}}
    for fresh, restored, weight in ranks.run(restored_state, dp, tmp_path):
        assert fresh != restored == saved
        assert weight == 0.03


def many_commits(rank: Rank, given: LearnerSettings, config: RunConfig, root: Path) -> None:
    with rank.learner(given) as learner:
        for step in range(1, 7):
            tag = {2: "iter1-compressed", 4: "iter1-expanded"}.get(step)
            saver.save(RunDir(root), learner, config, step=step, tag=tag, decisions={"controller": {}})
            if tag:
                store.export(RunDir(root), learner, config, tag)


def test_newest_and_tagged_commits_are_kept(ranks: Ranks, model_dir: Path, tmp_path: Path) -> None:
    ranks.run(many_commits, settings(model_dir, {"tp": 2}), run_config(model_dir, keep=2), tmp_path)
    paths = RunDir(tmp_path)
    assert [record.step for record in store.commits(paths)] == [2, 4, 5, 6]
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == [
        f"step-{step:06d}" for step in (2, 4, 5, 6)]
    assert store.tags(paths) == {
        "iter1-compressed": {"step": 2, "export": "export/iter1-compressed"},
        "iter1-expanded": {"step": 4, "export": "export/iter1-expanded"}}
    assert (paths.export / "iter1-expanded" / "model.safetensors").is_file()


def test_half_written_exports_are_removed(tmp_path: Path) -> None:
    """And a resumed run is told, to say so."""
    paths = RunDir(tmp_path)
    (paths.export / ".iter1-compressed.part").mkdir(parents=True)
    removed = ["removed half-written export/.iter1-compressed.part"]
    assert resume_point(paths) == {"record": None, "removed": removed}
    assert resume_point(paths) == {"record": None, "removed": []}


def damaged(rank: Rank, given: LearnerSettings, root: Path) -> str:
    from siri_megatron.errors import ModelError
    record = store.latest(RunDir(root))
    assert record is not None
    with rank.learner(given) as learner:
        try:
            store.restore(RunDir(root), learner, record)
        except ModelError as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def committed(ranks: Ranks, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a commit, to be copied."""
    root = tmp_path_factory.mktemp("committed")
    ranks.run(trained_and_committed, settings(model_dir, {"tp": 2}), run_config(model_dir), root)
    return root


STATE_FILES = ["metadata.json", ".metadata", "common.pt", "__1_0.distcp"]


@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "a bit"])
def test_a_damaged_checkpoint_is_named(ranks: Ranks, model_dir: Path, committed: Path, tmp_path: Path, name: str,
                                       damage: str) -> None:
    """A file is missing, cut off in the middle, or has one bit changed: every rank says so, and which checkpoint."""
    state = damaged_copy(committed, tmp_path, name, damage)
    for message in ranks.run(damaged, settings(model_dir, {"tp": 2}), tmp_path):
        assert f"{state} is damaged: {name}" in message


@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_checksums_what_lacks_is_named(ranks: Ranks, model_dir: Path, committed: Path, tmp_path: Path,
                                               name: str, damage: str) -> None:
    state = damaged_copy(committed, tmp_path, name, damage)
    without_sums(tmp_path)
    for message in ranks.run(damaged, settings(model_dir, {"tp": 2}), tmp_path):
        assert f"{state} cannot be read" in message


def test_without_checksums_a_changed_bit_goes_unnoticed(ranks: Ranks, model_dir: Path, committed: Path, tmp_path: Path
                                                        ) -> None:
    """The negative control: torch's reader does not look at the sums in its own files."""
    damaged_copy(committed, tmp_path, "__1_0.distcp", "a bit")
    without_sums(tmp_path)
    assert ranks.run(damaged, settings(model_dir, {"tp": 2}), tmp_path) == ["", ""]


def damaged_copy(committed: Path, root: Path, name: str, damage: str) -> Path:
    """A copy of the run with one damaged file; returns the directory of that file."""
    shutil.copytree(committed, root, dirs_exist_ok=True)
    state = RunDir(root).checkpoint(3) / store.STATE
    content = bytearray((state / name).read_bytes())
    (state / name).unlink()
    middle = len(content) // 2
    if damage == "a bit":
        content[middle] ^= 4
    if damage != "missing":
        (state / name).write_bytes(content[:middle] if damage == "cut" else content)
    return state


def without_sums(root: Path) -> None:
    """As a run with checkpoint.checksums=false would have committed it."""
    found = store.latest(RunDir(root))
    assert found is not None
    write_record(replace(found, files={}), RunDir(root).checkpoint(3))


def test_every_file_of_a_state_has_its_sum(committed: Path) -> None:
    found = store.latest(RunDir(committed))
    assert found is not None
    state = RunDir(committed).checkpoint(3) / store.STATE
    assert found.files == {path.name: sum_of(path) for path in state.iterdir()}


def test_ranks_look_through_all_files_between_them(tmp_path: Path) -> None:
    names = [f"file-{index}" for index in range(7)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    files = {name: sum_of(tmp_path / name) for name in names}
    for bad in names:
        changed = files | {bad: [1, 2]}
        said = [first_damaged(tmp_path, changed, rank, 3) for rank in range(3)]
        assert sum(bad in (one or "") for one in said) == 1
        assert said.count(None) == 2


def test_record_says_where_the_run_stands(model_dir: Path) -> None:
    config = run_config(model_dir)
    record = store.make_record(config, step=5, tag=None, decisions={"controller": {"a": 1}})
    assert (record.consumed_prompts, record.ledger_steps, record.weight_version) == (80, 5, "5")
    moved = config.model_copy(update={"name": "y"})
    other = store.make_record(moved, step=5, tag=None, decisions={"controller": {"a": 1}})
    assert other.identity == record.identity
    assert other.runtime != record.runtime
    assert json.loads(json.dumps(record.to_json())) == record.to_json()
