"""Parameters of a rank against the model that megatron-core builds for it, on the meta device."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from large_models import CASES, Case, build_rank

from siri_megatron.config import LearnerConfig
from siri_megatron.estimate.parameters import held_parameters, model_parameters, rank_entries
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.layout import faults
from siri_megatron.learner.runtime import megatron_runtime

TINY = json.loads((Path(__file__).resolve().parents[2] / "configs/models/tiny-digits/config.json").read_text())
BUILT = {**CASES, "tiny": Case(TINY, LearnerConfig(), 0), "tiny-tp2-pp2": Case(TINY, LearnerConfig(tp=2, pp=2), 0),
         "7b-tp3-padded-vocabulary": Case(CASES["7b-tp4-pp4"].config | {
             "num_attention_heads": 24, "num_key_value_heads": 6, "intermediate_size": 18942, "head_dim": 128,
             "vocab_size": 152063}, LearnerConfig(tp=3, pp=2), 0)}


def sizes(case: Case, stage: int, tp: int) -> list[int]:
    """Elements of each parameter of the real model on one rank."""
    layout = case.layout
    rank = stage * layout.tp * layout.dp * layout.cp + tp
    built = build_rank(Architecture.of(case.config), layout, rank, -1)
    assert (built.pp, built.tp) == (stage, tp)
    return [parameter.numel() for chunk in built.chunks for parameter in chunk.values()]


@pytest.mark.parametrize("name", BUILT)
def test_counted_exactly(name: str) -> None:
    case = BUILT[name]
    with megatron_runtime():
        for stage, held in enumerate(held_parameters(Architecture.of(case.config), case.layout)):
            for tp in {0, case.layout.tp - 1}:
                real = sizes(case, stage, tp)
                assert (held.total, held.largest) == (sum(real), max(real)), f"stage {stage}, tp rank {tp}"


def test_a_wrong_cut_would_be_noticed() -> None:
    """Negative control: the count of another layout, or of an untied model, is another."""
    case = BUILT["tiny-tp2-pp2"]
    arch = Architecture.of(case.config)
    with megatron_runtime():
        real = sum(sizes(case, 1, 0))
    assert held_parameters(arch, LearnerConfig(tp=2, pp=2))[1].total == real
    assert held_parameters(arch, LearnerConfig(tp=1, pp=2))[1].total != real
    assert held_parameters(replace(arch, vocab=arch.vocab + 2), LearnerConfig(tp=2, pp=2))[1].total != real


@pytest.mark.parametrize("name", CASES)
def test_the_whole_model_is_the_model_cards(name: str) -> None:
    case = CASES[name]
    arch = Architecture.of(case.config)
    assert model_parameters(arch) == case.parameters
    whole = LearnerConfig()
    assert sum(prod(part.shape) for entry in rank_entries(arch, whole, 0) for part in entry.parts) == case.parameters


layouts = st.builds(LearnerConfig, tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4]),
                    dp=st.sampled_from([1, 2, 4]), vpp=st.sampled_from([1, 2]))


@given(st.sampled_from(sorted(CASES)), layouts, st.sampled_from(["tp", "pp", "dp"]))
def test_never_more_by_a_finer_cut(name: str, layout: LearnerConfig, key: str) -> None:
    """From pp=1 to 2 a tied model's last stage gets a copy of the embedding: there, and only there, it may be more."""
    arch = Architecture.of(CASES[name].config)
    finer = layout.model_copy(update={key: 2 * getattr(layout, key)})
    if any(faults(arch, layout)) or any(faults(arch, finer)) or (arch.tied and key == "pp" and layout.pp == 1):
        return
    before, after = (max(held.total for held in held_parameters(arch, one)) for one in (layout, finer))
    assert after <= before if key != "dp" else after == before
