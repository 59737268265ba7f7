"""Micro-batches: what the model reads and predicts, in both shapes, and how packed segments are grouped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import round_up, segment_room
from siri_megatron.learner.attention import SIMILAR, PackedRow, similar_groups
from siri_megatron.learner.batch import Batch, Mode, Sample, cut, make_batch
from siri_megatron.learner.context import ContextRanks

CPU = torch.device("cpu")
tokens = st.lists(st.integers(1, 99), min_size=1, max_size=12)
samples = st.lists(st.builds(Sample, tokens, tokens, st.floats(0.1, 1)), min_size=1, max_size=9)
MODES: tuple[Mode, ...] = ("packed", "bucketed")


def laid_out(given_samples: list[Sample], mode: Mode) -> Batch:
    fed = [sample.fed for sample in given_samples]
    width = sum(fed) + 3 if mode == "packed" else max(fed) + 3
    return make_batch(given_samples, mode, width, "local", CPU)


@pytest.mark.parametrize("mode", MODES)
@given(given_samples=samples)
def test_order_kept(mode: Mode, given_samples: list[Sample]) -> None:
    batch = laid_out(given_samples, mode)
    responses = [token for sample in given_samples for token in sample.response_ids]
    assert batch.labels[batch.mask.bool()].tolist() == responses
    before = [[*sample.prompt_ids, *sample.response_ids][place - 1] for sample in given_samples
              for place in range(len(sample.prompt_ids), sample.fed + 1)]
    assert batch.ids[batch.mask.bool()].tolist() == before


@pytest.mark.parametrize("mode", MODES)
@given(given_samples=samples)
def test_padding_weighs_nothing(mode: Mode, given_samples: list[Sample]) -> None:
    batch = laid_out(given_samples, mode)
    assert int((batch.ids == 0).sum()) == batch.ids.numel() - batch.tokens
    assert batch.weights[~batch.mask.bool()].abs().sum() == 0
    wanted = sum(len(sample.response_ids) * float(sample.token_weights) for sample in given_samples)  # type: ignore[arg-type]
    assert batch.weights.sum().item() == pytest.approx(wanted, rel=1e-5)


@given(given_samples=samples, more=st.integers(0, 4))
def test_empty_rows_weigh_nothing(given_samples: list[Sample], more: int) -> None:
    """A micro-batch of a planned height: the rows beyond the samples are padding, the others are as without them."""
    width, height = max(sample.fed for sample in given_samples), len(given_samples) + more
    batch = make_batch(given_samples, "bucketed", width, "local", CPU, height=height)
    alone = make_batch(given_samples, "bucketed", width, "local", CPU)
    assert batch.ids.shape == (height, width)
    assert (batch.tokens, batch.samples) == (alone.tokens, alone.samples)
    for name in ("ids", "labels", "mask", "weights", "advantages", "segment"):
        assert torch.equal(getattr(batch, name)[: len(given_samples)], getattr(alone, name))
        assert getattr(batch, name)[len(given_samples):].abs().sum() == 0


@pytest.mark.parametrize("mode", MODES)
def test_dummy_for_empty(mode: Mode) -> None:
    batch = make_batch([], mode, 8, "local", CPU)
    assert batch.ids.shape == (1, 8)
    assert batch.tokens == batch.mask.sum() == batch.weights.sum() == 0


@pytest.mark.parametrize("mode", MODES)
@given(given_samples=samples, size=st.integers(2, 4))
def test_parts_make_the_whole(mode: Mode, given_samples: list[Sample], size: int) -> None:
    """Every tensor of the ranks' parts, put in order and without the padding, is that of a single rank."""
    fed = [sample.fed for sample in given_samples]
    rooms = [segment_room(length, size) for length in fed] if mode == "packed" else [round_up(max(fed), 8 * size)]
    width = round_up(sum(rooms), 8 * size)
    parts = [make_batch(given_samples, mode, width, "local", CPU, ContextRanks(rank, size)) for rank in range(size)]
    alone = make_batch(given_samples, mode, sum(fed) if mode == "packed" else max(fed), "local", CPU)
    for name in ("ids", "labels", "mask", "rollout_logprobs", "advantages", "weights", "segment"):
        pieces = [getattr(part, name) for part in parts]
        assert len({piece.shape for piece in pieces}) == 1
        whole = torch.empty(sum(map(torch.numel, pieces)), dtype=pieces[0].dtype)
        whole[parts[0].order] = torch.cat([piece.flatten() for piece in pieces])
        rows = whole.view(len(pieces[0]), width)
        if mode == "packed":
            found = torch.cat([rows[0, begin : begin + length]
                               for begin, length in zip(np.cumsum([0, *rooms]), fed, strict=False)])
            assert torch.equal(found, getattr(alone, name)[0])
        else:
            assert torch.equal(rows[:, : max(fed)], getattr(alone, name))
    assert {part.tokens for part in parts} == {sum(fed)}


def test_segments_for_transformer_engine() -> None:
    """With context parallelism padding is part of its segment: bounds of whole chunks, the same object twice."""
    fed = [Sample([1] * prompt, [2] * response) for prompt, response in ((2, 4), (1, 3), (4, 6))]
    alone = make_batch(fed, "packed", 24, "te", CPU).packing
    assert (alone.cu_seqlens_q.tolist(), alone.max_seqlen_q) == ([0, 5, 8, 17, 24], 9)
    assert alone.cu_seqlens_q_padded is None
    part = make_batch(fed, "packed", 32, "te", CPU, ContextRanks(1, 2)).packing
    assert (part.cu_seqlens_q.tolist(), part.max_seqlen_q) == ([0, 8, 12, 24, 32], 12)
    assert part.cu_seqlens_q_padded is part.cu_seqlens_q
    assert part.cu_seqlens_kv_padded is part.cu_seqlens_kv


def test_one_value_a_sample_or_one_a_token() -> None:
    batch = make_batch([Sample([5, 6], [7, 8], 0.5, [-1.0, -2.0], 3.0), Sample([5], [7, 8], [0.1, 0.2])], "packed", 6,
                       "local", CPU)
    torch.testing.assert_close(batch.weights, torch.tensor([[0, 0.5, 0.5, 0.1, 0.2, 0]]))
    assert batch.old_logprobs.tolist() == [[0, -1, -2, 0, 0, 0]]
    assert batch.advantages.tolist() == [[0, 3, 3, 0, 0, 0]]


@pytest.mark.parametrize("mode", MODES)
@given(given_samples=samples, data=st.data())
def test_forced_weighs_nothing(mode: Mode, given_samples: list[Sample], data: st.DataObject) -> None:
    """Forced tokens are read like any others; what is predicted there has no mask and no weight, the rest keeps its."""
    marked = []
    for sample in given_samples:
        ends = data.draw(st.lists(st.integers(0, len(sample.response_ids)), min_size=2, max_size=2))
        marked.append(replace(sample, forced=tuple(sorted(ends))))
    plain, batch = laid_out(given_samples, mode), laid_out(marked, mode)
    kept = torch.tensor([not sample.forced[0] <= place < sample.forced[1] for sample in marked
                         for place in range(len(sample.response_ids))])
    for name in ("ids", "labels", "segment", "old_logprobs", "advantages"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    at = plain.mask.bool()
    assert torch.equal(batch.mask[at], kept.float())
    assert torch.equal(batch.weights[at], plain.weights[at] * kept)
    assert not batch.mask[~at].any()
    assert not batch.weights[~at].any()


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(np.array)


@given(lengths=lengths, padding=st.integers(0, 9))
def test_segments_are_gathered_and_scattered(lengths: np.ndarray, padding: int) -> None:
    """Scatter undoes gather; a slot row holds one segment from its start; positions restart with each segment."""
    total = int(lengths.sum())
    row = PackedRow.of(lengths, total + padding, CPU)
    slots = torch.cat([gather.flatten() for gather in row.gathers])
    assert torch.equal(slots[row.scatter][:total], torch.arange(total))
    ends = np.cumsum(lengths)
    segment = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    for gather in row.gathers:
        assert torch.equal(segment[gather], segment[gather[:, :1]].expand_as(gather))
        assert torch.equal(gather[:, 0], torch.from_numpy(ends - lengths)[segment[gather[:, 0]]])
    assert row.positions[:total].tolist() == [place for length in lengths for place in range(length)]


@given(lengths=lengths)
def test_groups_are_similar(lengths: np.ndarray) -> None:
    groups = similar_groups(lengths)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(lengths[group].min() >= SIMILAR * lengths[group].max() for group in groups)


@pytest.mark.parametrize("mode", MODES)
@given(fed=st.lists(st.integers(1, 80), min_size=1, max_size=20), dp=st.integers(1, 3), multiple=st.integers(1, 3),
       cp=st.integers(1, 3))
def test_cut_deals_every_row_once(mode: Mode, fed: list[int], dp: int, multiple: int, cp: int) -> None:
    ranks = cut(fed, mode, 64, dp=dp, multiple=multiple, cp=cp).ranks
    assert sorted(row for rank in ranks for micro in rank for row in micro.rows) == list(range(len(fed)))
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) % multiple == 0
    for micro in (micro for rank in ranks for micro in rank):
        assert micro.width % (8 * cp) == 0
        assert sum(segment_room(fed[row], cp) for row in micro.rows) <= micro.width * (
            1 if mode == "packed" else max(1, len(micro.rows)))
