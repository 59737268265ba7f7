"""An export and its sender stream: no rank ever holds the model, only a bucket and a tensor (malloc's own count)."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import write_model
from ranks import Rank, Ranks
from test_export import given_settings

from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights.names import stage_entries, tensors

BUCKET = 256 << 10
SLACK = 64 << 10
"""Bytes of small tensors."""
TRIES = 4
"""The least of their peaks counts: gloo's threads let go of a bucket a moment after its broadcast, on a busy machine of
several at once; what the export itself holds is there every time."""
LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "tp2 pp2": {"tp": 2, "pp": 2}}
SIZES = {"num_hidden_layers": 8, "hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    with Ranks(4) as pool:
        yield pool


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "qwen3", shards=False, **SIZES)


class Malloc(ctypes.Structure):
    """glibc's struct mallinfo2: bytes in use in the main arena and in mappings of their own."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def in_use() -> int:
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Malloc
    info = ask()
    return int(info.uordblks + info.hblkhd)


class Watched:
    """The most that is in use beyond the beginning, looked at by a thread and wherever `look` is called."""

    def __enter__(self) -> Watched:
        gc.collect()
        self.before, self.most, self._over = in_use(), 0, threading.Event()
        self._thread = threading.Thread(target=self._keep_looking)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        self.most = max(self.most, in_use() - self.before)

    def _keep_looking(self) -> None:
        while not self._over.wait(1e-4):
            self.look()


def peaks(rank: Rank, settings: Any, keep: bool) -> tuple[int, int]:
    """Highest point of the export alone, and of export and sender. keep: as one that collects everything would."""
    from siri_megatron.weights import senders
    from siri_megatron.weights.export import export_tensors
    from siri_megatron.weights.feed import Feed
    from siri_megatron.weights.push import exhaust

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        return export_tensors(learner.chunks, learner.architecture, bucket_bytes=BUCKET)

    def looked_at(watched: Watched) -> Iterator[tuple[str, torch.Tensor]]:
        for item in export():
            watched.look()
            yield item
            del item

    def send(watched: Watched) -> None:
        senders.BUCKET_BYTES = BUCKET  # in this process only
        feed, buffer = Feed(looked_at(watched)), senders.Buffer(torch.device("cpu"))
        while buffer.fill(feed)[0]:
            watched.look()

    def once() -> tuple[int, int]:
        with Watched() as alone:
            kept = list(looked_at(alone)) if keep else exhaust(looked_at(alone))
        del kept
        with Watched() as both:
            send(both)
        return alone.most, both.most

    with rank.learner(settings) as learner:
        exhaust(export())  # groups connect at their first use
        tries = [once() for _ in range(TRIES)]
    return min(alone for alone, _ in tries), min(both for _, both in tries)


def largest_entry(path: Path) -> int:
    """Bytes of the largest tensor, and of the largest parameter (which is gathered as a whole)."""
    arch = Architecture.of(read_config(path))
    return max(4 * sum(prod(part.shape) for part in entry.parts) for entry in stage_entries(arch, 0, 1))


def bounds(path: Path) -> tuple[int, int]:
    arch = Architecture.of(read_config(path))
    tensor = max(4 * prod(part.shape) for part in tensors(arch))
    bucket = max(BUCKET, largest_entry(path))
    alone = bucket + tensor + bucket + SLACK  # the bucket before it, of which gloo's threads have not let go
    return alone, alone + max(BUCKET, tensor) + tensor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streamed(two_ranks: Ranks, four_ranks: Ranks, model: Path, layout: str) -> None:
    given = given_settings(model, LAYOUTS[layout])
    ranks = four_ranks if given.layout.world_size == 4 else two_ranks
    whole = sum(4 * prod(part.shape) for part in tensors(Architecture.of(read_config(model))))
    alone, both = bounds(model)
    found = ranks.run(peaks, given, False)
    print(f"{layout}: export, export and sender {found} bytes; allowed {alone}, {both}; model {whole}")
    assert 2 * both < whole, "else this proves nothing"
    assert [(x <= alone, y <= both) for x, y in found] == [(True, True)] * len(found), (found, alone, both)
    kept = ranks.run(peaks, given, True)
    assert all(x > alone for x, _ in kept), "control: who keeps the tensors is seen"
