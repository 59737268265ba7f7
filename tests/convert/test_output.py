"""The made directory: there whole or not at all, whatever happens on the way; nothing that was there is lost."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import back, bits_equal, loaded, quiet, siblings, there
from models import write_model

from siri_megatron.convert import write
from siri_megatron.convert.convert import Options, hf_to_megatron, megatron_to_hf
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.output import check_destination
from siri_megatron.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = ".out.converting"
# Converts argv[1] to argv[2]; each chunk takes a while, so that there is time to interfere. Says when it began.
SLOW = r"""
import os, sys, time
from pathlib import Path
from siri_megatron.cli import main
from siri_megatron.convert.hf import HfWeights
plain = HfWeights.chunk
def slow(self, chunk):
    os.write(1, b"began\n")  # two threads: one write a line
    time.sleep(0.2)
    return plain(self, chunk)
HfWeights.chunk = slow
sys.exit(main(["convert", "hf-to-megatron", sys.argv[1], sys.argv[2]]))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "qwen2")


def convert(model: Path, destination: Path, **options: Any) -> None:
    hf_to_megatron(model, destination, tp=1, pp=1, options=Options(**options), progress=quiet)


@contextmanager
def slow_conversion(model: Path, destination: Path) -> Iterator[subprocess.Popen[str]]:
    """A conversion in a process of its own that has begun to write; gone at the end."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(model), str(destination)], text=True, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=180)


def test_full_destination_needs_force(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out")
    with pytest.raises(ModelError, match="exists and is not empty"):
        convert(model, tmp_path / "out")
    convert(model, tmp_path / "out", force=True)
    (tmp_path / "empty").mkdir()
    convert(model, tmp_path / "empty")
    assert siblings(tmp_path / "out") == ["empty", "model", "out"]


def test_force_replaces_models_only(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="holds other things than a model"):
        convert(model, tmp_path / "out", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        convert(model, tmp_path / "file", force=True)


@pytest.mark.parametrize("place", ["model", "model/inside", "."])
def test_source_and_destination_do_not_overlap(model: Path, tmp_path: Path, place: str) -> None:
    before = loaded(model)
    with pytest.raises(ModelError, match="overlap"):
        convert(model, tmp_path / place, force=True)
    assert bits_equal(loaded(model), before)


def test_a_former_result_stays_until_the_new_one_is_whole(model: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    convert(model, tmp_path / "out")

    def broken(self: HfWeights, chunk: Any) -> Any:
        raise ModelError("bad", rule="r", fix="f")

    with monkeypatch.context() as patch:
        patch.setattr(HfWeights, "chunk", broken)
        with pytest.raises(ModelError, match="bad"):
            convert(model, tmp_path / "out", force=True)
    back(tmp_path / "out", tmp_path / "again")
    assert siblings(tmp_path / "out") == ["again", "model", "out"]


def test_an_error_in_a_writer_thread_is_not_lost(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock writer's own threads would leave a checkpoint with a hole."""
    plain = HfWeights.chunk

    def broken(self: HfWeights, chunk: Any) -> Any:
        if chunk.slot.row == 1:  # in the second of two files
            raise ModelError("bad", rule="r", fix="f")
        return plain(self, chunk)

    monkeypatch.setattr(HfWeights, "chunk", broken)
    with pytest.raises(ModelError, match="bad"):
        convert(model, tmp_path / "out")
    assert siblings(tmp_path / "out") == ["model"]
    assert torch.serialization.get_crc32_options()  # a setting of the process: as it was


def test_too_small_a_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    checkpoint = there(model, tmp_path / "megatron")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 50_000, 50_000))
    with pytest.raises(ModelError, match=r"needs 67,\d+,\d+ bytes, .* has 50,000 free"):
        convert(model, tmp_path / "out")
    with pytest.raises(ModelError, match="has 50,000 free"):
        megatron_to_hf(checkpoint, tmp_path / "out", hf=None, options=Options(), progress=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_a_disk_that_fills_up(model: Path, tmp_path: Path, direction: str) -> None:
    """A limit on the size of files stands for it: the write fails in the middle."""
    source = model if direction == "hf-to-megatron" else there(model, tmp_path / "megatron")
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
            "from siri_megatron.cli import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "convert", direction, str(source), str(tmp_path / "out")],
                          capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert done.returncode == 2
    assert f"{tmp_path / HIDDEN} cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert HIDDEN not in siblings(tmp_path / "out")


def test_an_unwritable_place(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be made"):
        convert(model, tmp_path / "file" / "out")


def test_ctrl_c_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with slow_conversion(model, tmp_path / "out") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 130
    assert said == "siri: interrupted\n"
    assert siblings(tmp_path / "out") == ["model"]


def test_what_a_kill_leaves_is_cleaned_by_the_next_call(model: Path, tmp_path: Path) -> None:
    with slow_conversion(model, tmp_path / "out") as process:
        process.kill()
    assert siblings(tmp_path / "out") == [HIDDEN, "model"]
    (tmp_path / HIDDEN / "debris").mkdir()
    convert(model, tmp_path / "out")
    assert siblings(tmp_path / "out") == ["model", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["hf", "latest_checkpointed_iteration.txt", "release"]


def test_one_at_a_time(model: Path, tmp_path: Path) -> None:
    with slow_conversion(model, tmp_path / "out") as process:
        with pytest.raises(ModelError, match="another conversion is writing"):
            convert(model, tmp_path / "out")
        process.communicate(timeout=180)
        assert process.returncode == 0
    back(tmp_path / "out", tmp_path / "again")
    assert bits_equal(loaded(tmp_path / "again"), loaded(model))


def test_every_file_is_on_disk_before_the_rename(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    plain_sync, plain_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        plain_sync(descriptor)

    def rename(source: Path, destination: Path) -> None:
        if destination == tmp_path / "out":
            assert {str(path) for path in Path(source).rglob("*") if path.is_file()} <= synced
        plain_rename(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    convert(model, tmp_path / "out")
    assert str(tmp_path) in synced


def test_what_appears_meanwhile_is_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else makes the destination while a conversion is under way."""
    plain = HfWeights.chunk

    def beside(self: HfWeights, chunk: Any) -> Any:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        return plain(self, chunk)

    monkeypatch.setattr(HfWeights, "chunk", beside)
    with pytest.raises(ModelError, match="exists and is not empty"):
        convert(model, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    assert siblings(tmp_path / "out") == ["model", "out"]


def test_a_rename_that_fails_gives_the_former_result_back(model: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    convert(model, tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("")
    plain = os.rename

    def rename(source: Path, destination: Path) -> None:
        if Path(source).name == HIDDEN:
            raise OSError("no")
        plain(source, destination)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ModelError, match="cannot be written: no"):
        convert(model, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine").exists()
    assert siblings(tmp_path / "out") == ["model", "out"]


def test_a_destination_behind_a_link(model: Path, tmp_path: Path) -> None:
    """The link stays, what it leads to is replaced, as often as asked."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    for _ in range(3):
        convert(model, tmp_path / "out", force=True)
    assert (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["real"]
    assert siblings(tmp_path / "out") == ["disk", "model", "out"]


def test_here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`siri convert hf-to-megatron SRC .`"""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    convert(model, Path("."))
    assert (tmp_path / "out" / "release").is_dir()


def test_the_lock_dies_with_its_holder(tmp_path: Path, model: Path) -> None:
    (tmp_path / HIDDEN).mkdir()
    held = os.open(tmp_path / HIDDEN, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ModelError, match="another conversion"):
        convert(model, tmp_path / "out")
    assert (tmp_path / HIDDEN).is_dir()
    os.close(held)
    convert(model, tmp_path / "out")


def test_files_are_about_even() -> None:
    class Sized:
        def __init__(self, size: int) -> None:
            self.shape = (size,)

    runs = write.cut_evenly([Sized(size) for size in (50, 10, 10, 10, 10, 10)], 2)  # type: ignore[misc]
    assert [[chunk.shape[0] for chunk in run] for run in runs] == [[50], [10] * 5]
    assert torch.equal(write.own_storage(torch.arange(6)[2:4]), torch.tensor([2, 3]))


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The former directory gets its name back, and is then protected as ever."""
    former = tmp_path / ".model.old"
    former.mkdir()
    (former / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not empty"):
        check_destination(tmp_path / "model", [], force=False)
    assert (tmp_path / "model" / "config.json").exists()
    former.mkdir()  # this time the new one has the name: the former is debris
    check_destination(tmp_path / "model", [], force=True)
    assert not former.exists()
