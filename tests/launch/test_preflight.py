"""Checks that the command line's table of bad input does not reach: space, packages, what a model directory holds."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch_models import write_form, write_shard

from siri_megatron import config as configs
from siri_megatron.config import RunConfig, validate
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import train_prompts
from siri_megatron.errors import ConfigError, ModelError
from siri_megatron.launch import preflight
from siri_megatron.launch.model_files import inspect_model
from siri_megatron.launch.spec import PACKAGE_ROOT, Machine
from siri_megatron.paths import RunDir
from siri_megatron.sft_config import load_sft

TINY_SFT = PACKAGE_ROOT / "configs" / "tiny-warmstart.yaml"


def config(**sections: Any) -> RunConfig:
    raw: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                           "budget": {"l_min": 8, "l_max": 64, "cycle_steps": 4, "cycles": 2}}
    return validate(raw | sections, "test")


def test_packages_are_found_without_importing_them() -> None:
    preflight.check_packages(["json", "concurrent.futures", "pydantic"])
    with pytest.raises(ConfigError, match=r"not installed: no_such_package, json\.no_such_module"):
        preflight.check_packages(["json", "no_such_package", "json.no_such_module"])


def test_model_is_measured_from_its_headers(tmp_path: Path) -> None:
    model = write_form(tmp_path / "m")
    write_shard(model / "model.safetensors", {"embedding": [37, 32], "norm": [32]})
    found = inspect_model(model)
    assert (found.parameters, found.bytes) == (37 * 32 + 32, 4 * (37 * 32 + 32))
    write_shard(tmp_path / "m" / "more.safetensors", {"x": [5]})
    assert inspect_model(tmp_path / "m").parameters == found.parameters + 5


def test_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(ModelError, match="/m is a file"):
        inspect_model(tmp_path / "m")


def test_header_that_promises_too_much_is_not_read_whole(tmp_path: Path) -> None:
    shard = write_form(tmp_path / "m") / "model.safetensors"
    shard.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=r"\(10 bytes\) has no readable safetensors header"):
        inspect_model(tmp_path / "m")


@given(prompt=st.integers(1, 200), cap=st.integers(8, 400), positions=st.integers(64, 600),
       context=st.none() | st.integers(32, 700))
def test_context_is_refused_exactly_if_it_does_not_hold(prompt: int, cap: int, positions: int,
                                                        context: int | None) -> None:
    made = config(data={"max_prompt_tokens": prompt}, engines={"max_model_len": context}, evaluation={"budgets": [cap]},
                  budget={"l_min": 8, "l_max": cap, "cycle_steps": 2, "cycles": 1})
    engines = context or -(-(prompt + cap) // 32) * 32
    holds = prompt + cap <= engines <= positions
    both_numbers = f"{engines}.*{positions}|{prompt + cap}.*{engines}"
    with nullcontext() if holds else pytest.raises(ConfigError, match=both_numbers):
        preflight.check_context(made, {"max_position_embeddings": positions})


def test_layout_and_paths_may_change_between_start_and_resume(tmp_path: Path) -> None:
    configs.save(config(), RunDir(tmp_path).config)
    preflight.check_same_run(config(learner={"tp": 4}, engines={"count": 5}, checkpoint={"keep": 9}), RunDir(tmp_path))
    with pytest.raises(ConfigError, match="seed was 1, is 2"):
        preflight.check_same_run(config(seed=2), RunDir(tmp_path))


def test_a_gpu_only_choice_is_refused_where_there_is_no_gpu() -> None:
    wanting = config(push={"backend": "nccl"})
    preflight.check_device(wanting, Machine(cores=(0,), device="cuda"))
    with pytest.raises(ConfigError, match=r"push\.backend=nccl, but this machine has no NVIDIA GPU"):
        preflight.check_device(wanting, Machine(cores=(0,)))


def test_an_engine_in_one_process_is_refused_where_there_is_a_gpu() -> None:
    wanting = config(engines={"in_process": True})
    preflight.check_device(wanting, Machine(cores=(0,)))
    with pytest.raises(ConfigError, match=r"engines\.in_process, and this machine has a GPU"):
        preflight.check_device(wanting, Machine(cores=(0,), device="cuda"))


def test_a_custom_reward_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def score(prompt, reference, response):\n    return 1.0\n")
    preflight.check_reward(config(reward={"verifier": "custom", "custom": f"{rewards}:score"}))
    preflight.check_reward(config())
    with pytest.raises(ConfigError, match="has no function scores"):
        preflight.check_reward(config(reward={"verifier": "custom", "custom": f"{rewards}:scores"}))


def test_verifier_workers_are_the_machine_and_its_scope_the_method() -> None:
    here = configs.identity_hash(config(reward={"verifier": "math"}))
    other = {"verifier": "math", "workers": 8, "timeout_s": 9.0, "max_failed": 0.5, "memory_gib": 4.0}
    assert configs.identity_hash(config(reward=other)) == here
    assert configs.identity_hash(config(reward={"verifier": "math", "scope": "boxed"})) != here


def test_fingerprint_of_the_starting_weights_is_part_of_the_identity(tmp_path: Path) -> None:
    """A resume, or a replay, from other weights than the run began with is refused."""
    first = inspect_model(write_form(tmp_path / "a"))
    assert inspect_model(write_form(tmp_path / "same")).fingerprint == first.fingerprint
    other = inspect_model(write_form(tmp_path / "b", rope_theta=5e5))
    configs.save(preflight.replace_fingerprint(config(), first), RunDir(tmp_path).config)
    preflight.check_same_run(preflight.replace_fingerprint(config(), first), RunDir(tmp_path))
    with pytest.raises(ConfigError, match=f"model.fingerprint was {first.fingerprint}, is {other.fingerprint}"):
        preflight.check_same_run(preflight.replace_fingerprint(config(), other), RunDir(tmp_path))


def test_changed_prompts_are_another_run(tmp_path: Path) -> None:
    """Edited, turned round, or cut: refused at resume. Moved, or split into other files of the same rows: allowed."""
    codec, model = TextCodec.load(write_form(tmp_path / "m")), inspect_model(tmp_path / "m")
    rows = [json.dumps({"prompt": f"a{i}|", "answer": str(i), "id": i}) + "\n" for i in range(9)]

    def resumed(name: str, *parts: list[str], **keys: Any) -> RunConfig:
        (tmp_path / name).mkdir()
        for shard, part in enumerate(parts):
            (tmp_path / name / f"train-{shard:05d}-of-{len(parts):05d}.jsonl").write_text("".join(part))
        made = config(data={"source": "dataset", "train": str(tmp_path / name), "max_prompt_tokens": 32} | keys)
        return preflight.replace_fingerprint(made, model, train_prompts(made.data, codec))

    run = RunDir(tmp_path / "run")
    first = resumed("first", rows)
    configs.save(first, run.config)
    for same in (first, resumed("moved", rows), resumed("sharded", rows[:4], rows[4:])):
        preflight.check_same_run(same, run)
    edited = [*rows[:3], rows[3].replace('"3"', '"5"'), *rows[4:]]
    for other in (resumed("edited", edited), resumed("turned", rows[::-1]), resumed("shorter", rows[:-1])):
        with pytest.raises(ConfigError, match=f"data.fingerprint was {first.data.fingerprint}, is "
                           f"{other.data.fingerprint}") as caught:
            preflight.check_same_run(other, run)
        assert "data.train" not in caught.value.what


def test_a_replay_may_change_the_optimizer_but_not_model_or_caps(tmp_path: Path) -> None:
    model, run = inspect_model(write_form(tmp_path / "m")), RunDir(tmp_path / "run")
    for step in range(8):
        run.ledger_step(step).mkdir(parents=True)
    configs.save(preflight.replace_fingerprint(config(), model), run.config)
    preflight.check_replay(config(optimizer={"lr": 1.0}), run.root, model)
    with pytest.raises(ConfigError, match=r"budget\.l_min was 8, is 9"):
        preflight.check_replay(config(budget={"l_min": 9, "l_max": 64, "cycle_steps": 4, "cycles": 2}), run.root, model)
    held = {"l_min": 8, "l_max": 64, "cycle_steps": 4, "cycles": 1, "hold_steps": 4}
    with pytest.raises(ConfigError, match=r"budget\.hold_steps was 0, is 4"):
        preflight.check_replay(config(budget=held), run.root, model)
    with pytest.raises(ConfigError, match=r"rollout\.budget_grid was .*, is \[16\]"):
        preflight.check_replay(config(rollout={"budget_grid": [16]}), run.root, model)
    with pytest.raises(ConfigError, match=r"rollout\.max_refill was 0\.0, is 1\.0"):
        preflight.check_replay(config(rollout={"max_refill": 1}), run.root, model)
    own = {"l_min": 8, "l_max": 64, "cycle_steps": 4, "cycles": 2, "prompt_caps": {"rule": "da_dler"}}
    with pytest.raises(ConfigError, match=r"budget\.prompt_caps\.rule was none, is da_dler"):
        preflight.check_replay(config(budget=own), run.root, model)
    preflight.check_replay(config(reward={"length_rule": "prorl"}), run.root, model)
    with pytest.raises(ConfigError, match=r"recorded with reward\.length_rule=none, the config now has dot"):
        preflight.check_replay(config(reward={"length_rule": "dot", "dot": {"std_multiplier": 2}}), run.root, model)
    other = inspect_model(write_form(tmp_path / "other", rope_theta=5e5))
    with pytest.raises(ConfigError, match=r"model\.fingerprint was "):
        preflight.check_replay(config(), run.root, other)
    for step in (0, 1, 2, 5):
        run.ledger_step(step).rename(run.root / f"gone-{step}")
    with pytest.raises(ConfigError, match=r"holds 4 closed steps, the schedule has 8; missing are 0\.\.2, 5"):
        preflight.check_replay(config(), run.root, model)
    for step in (0, 1, 2, 5):
        (run.root / f"gone-{step}").rename(run.ledger_step(step))
    run.config.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml does not exist"):
        preflight.check_replay(config(), run.root, model)


def test_a_warm_start_replaces_nothing_but_a_model(tmp_path: Path) -> None:
    """`output=runs` would take the place of all runs."""
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    for output, said in (("runs", "exists and is no model directory: tiny"), ("file", "it is a file"),
                         ("file/model", "file cannot be written")):
        (tmp_path / "file").touch()
        made = load_sft(TINY_SFT, [f"output={tmp_path / output}"])
        with pytest.raises(ConfigError, match=said):
            preflight.check_sft(made)
    (tmp_path / "empty").mkdir()
    write_form(tmp_path / "earlier")
    for output in ("empty", "earlier", "new/deep"):
        preflight.check_sft(load_sft(TINY_SFT, [f"output={tmp_path / output}"]))
