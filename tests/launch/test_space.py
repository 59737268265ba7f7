"""Space that a run takes: on the disk, and in shared memory for a push."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from launch_models import write_form, write_shard
from test_preflight import config

from siri_megatron.errors import ConfigError
from siri_megatron.launch import space
from siri_megatron.launch.model_files import inspect_model


def test_a_push_takes_a_few_buckets_of_shared_memory(tmp_path: Path) -> None:
    from siri_megatron.weights import senders

    assert space.PUSH_BUCKET_BYTES == senders.BUCKET_BYTES
    model = write_form(tmp_path / "m")
    write_shard(model / "model.safetensors", {"embedding": [37, 32], "norm": [32]})
    small = inspect_model(model)
    assert space.shm_need(small) == small.bytes
    many = {f"t{number}": replace(small.tensors["norm"], shape=(1024, 1024)) for number in range(1000)}
    large = replace(small, tensors=many, bytes=4 * 2**20 * len(many))
    assert space.shm_need(large) == 4 * space.PUSH_BUCKET_BYTES < large.bytes
    wide = many | {"embedding": replace(small.tensors["norm"], shape=(2**25,))}
    assert space.shm_need(replace(large, tensors=wide, bytes=large.bytes + 2**27)) == 4 * 2**27


def test_disk_and_shared_memory_give_both_numbers(tmp_path: Path) -> None:
    space.check_disk(tmp_path / "not" / "there" / "yet", 1)
    space.check_shm(1, tmp_path)
    with pytest.raises(ConfigError, match=r"has .* GiB free, the run may write 1048576.00 GiB"):
        space.check_disk(tmp_path, 2**50)
    with pytest.raises(ConfigError, match=r"has .* GiB free, a push takes 1048576.00 GiB"):
        space.check_shm(2**50, tmp_path)
    with pytest.raises(ConfigError, match=r"has 0.00 MiB free"):
        space.check_shm(1, tmp_path / "none")


def test_disk_need_grows_with_what_is_kept(tmp_path: Path) -> None:
    model = inspect_model(write_form(tmp_path / "m"))
    need = space.disk_need(config(checkpoint={"keep": 2}), model)
    kept = 2 + 1 + 4  # newest two, the one being written, four phase ends
    assert need - space.SPARE_BYTES == kept * (12 * model.parameters + model.bytes) + 4 * model.bytes
    assert space.disk_need(config(checkpoint={"keep": 3}), model) > need


def test_a_resumed_run_needs_no_room_for_what_is_there(tmp_path: Path) -> None:
    """A job that was requeued when most checkpoints were written would be refused: they fill the disk."""
    model, made = inspect_model(write_form(tmp_path / "m")), config(runs_dir=str(tmp_path))
    for file in ("checkpoints/step-000004/megatron/__0_0.distcp", "export/iter1-compressed/model.safetensors"):
        (made.run_dir / file).parent.mkdir(parents=True)
        (made.run_dir / file).write_bytes(bytes(1000))
    need = space.disk_need(made, model)
    assert space.disk_left(made, model, resumed=True) == need - 2000
    assert space.disk_left(made, model, resumed=False) == need, "what --fresh puts aside stays on the disk"
    (made.run_dir / "export" / "large").write_bytes(bytes(need - space.SPARE_BYTES))
    assert space.disk_left(made, model, resumed=True) == space.SPARE_BYTES
