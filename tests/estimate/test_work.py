"""Operations against a model written out product by product."""

from __future__ import annotations

import pytest
from estimate_cases import SMALL, published

from siri_megatron.config import LearnerConfig
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.estimate.work import ModelWork
from siri_megatron.learner.architecture import Architecture

WORK = ModelWork.of(SMALL, "float32")


def product(rows: int, inner: int, columns: int) -> int:
    """FLOP of one matrix product: a multiplication and an addition for each of its terms."""
    return 2 * rows * inner * columns


def forward(arch: Architecture, lengths: list[int], layers: int, *, head: bool) -> tuple[int, int, int]:
    """(matrix products, attention, output layer) of a forward pass over sequences, query by query."""
    tokens, width = sum(lengths), arch.heads * arch.head_dim
    key_value = arch.groups * arch.head_dim
    products = layers * (product(tokens, arch.hidden, width) + 2 * product(tokens, arch.hidden, key_value)
                         + product(tokens, width, arch.hidden) + 2 * product(tokens, arch.hidden, arch.ffn)
                         + product(tokens, arch.ffn, arch.hidden))
    attention = 0
    for length in lengths:
        for query in range(length):  # sees query + 1 keys
            attention += arch.heads * (product(1, arch.head_dim, query + 1) + product(1, query + 1, arch.head_dim))
    return products, layers * attention, product(tokens, arch.hidden, arch.vocab) if head else 0


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("lengths", [[1000], [900, 700, 300], [400] * 5])
def test_as_counted(recompute: str, lengths: list[int]) -> None:
    layout = LearnerConfig(pp=2, recompute=recompute)
    squares = sum(length * (length + 1) for length in lengths)  # a query sees itself too: n^2 is short of it by n
    for stage, head in ((0, False), (1, True)):
        products, attention, output = forward(SMALL, lengths, 4, head=head)
        passes = WORK.stage(layout, stage, sum(lengths), squares)
        again = {"none": 0, "selective": attention, "full": products + attention}[recompute]
        assert passes.forward == pytest.approx(products + attention + output)
        assert passes.backward == pytest.approx(2 * (products + attention + output) + again)


def test_negative_control_without_causality() -> None:
    products, attention, _ = forward(SMALL, [1000], 8, head=False)
    passes = WORK.stage(LearnerConfig(), 0, 1000, 1000**2)
    assert passes.forward != pytest.approx(products + 2 * attention, rel=0.05)


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_stages_add_up(pp: int) -> None:
    whole = WORK.stage(LearnerConfig(), 0, 500, 90_000).both
    parts = [WORK.stage(LearnerConfig(pp=pp), stage, 500, 90_000).both for stage in range(pp)]
    assert sum(parts) == pytest.approx(whole)
    assert max(parts) == parts[-1]


def test_more_is_more() -> None:
    layout = LearnerConfig()
    assert WORK.stage(layout, 0, 512, 512**2).both > WORK.stage(layout, 0, 512, 2 * 256**2).both
    assert WORK.stage(layout, 0, 513, 512**2).both > WORK.stage(layout, 0, 512, 512**2).both


@pytest.mark.parametrize("name", ["DeepSeek-R1-Distill-Qwen-1.5B", "DeepSeek-R1-Distill-Qwen-7B",
                                  "Llama-3.3-70B-Instruct"])
def test_six_n_a_token(name: str) -> None:
    """Short sequences take 6 FLOP a parameter and token, but for the embedding, which multiplies nothing."""
    arch = published(name)
    work = ModelWork.of(arch, "bfloat16")
    multiplied = model_parameters(arch) - (0 if arch.tied else arch.vocab * arch.hidden)
    assert work.stage(LearnerConfig(), 0, 1000, 1000).both == pytest.approx(6 * multiplied * 1000, rel=1e-3)
    assert work.weight_bytes == pytest.approx(2 * multiplied, rel=1e-3)
