"""Supervised batches: pure in (config, step), normalised weights, the curriculum's learning rates."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from siri_megatron.config import load
from siri_megatron.data.digit_sum import extract_answer, held_out
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, VOCABULARY
from siri_megatron.data.generated import held_out_by
from siri_megatron.data.sft_batches import sft_batch, stage_lr, stage_of
from siri_megatron.errors import ConfigError
from siri_megatron.sft_config import SftConfig, StageConfig, load_sft

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = CONFIGS / "tiny-warmstart.yaml"
CLEAN = {"teacher": "clean", "steps": 4, "tokens_per_step": 512, "content_weight": 5.0}
NOISY = {"teacher": "noisy", "steps": 6, "tokens_per_step": 1024, "lr_scale": 0.5, "final_lr_scale": 0.1}


def config(**changes: object) -> SftConfig:
    return SftConfig.model_validate({"name": "t", "output": "out", "init": {}, "optimizer": {"lr": 1e-3},
                                     "stages": [CLEAN, NOISY], **changes})


def text(ids: tuple[int, ...]) -> str:
    return "".join(VOCABULARY[index] for index in ids)


def test_batches_are_pure() -> None:
    late = sft_batch(config(), 7)
    assert late == sft_batch(config(), 7)
    assert late.sequences != sft_batch(config(), 8).sequences
    assert late.sequences != sft_batch(config(seed=2), 7).sequences


def test_sequences_are_framed_and_in_budget() -> None:
    for step in range(config().steps):
        batch = sft_batch(config(), step)
        lengths = [len(sequence) for sequence in batch.sequences]
        budget = config().stages[batch.stage].tokens_per_step
        assert sum(lengths) >= budget > sum(lengths[:-1])
        for sequence in batch.sequences:
            assert (sequence.prompt_ids[0], sequence.response_ids[-1]) == (BOS_ID, EOS_ID)
            assert len(sequence.token_weights) == len(sequence.response_ids) <= config().max_response_tokens


def test_weights_sum_to_one_and_favour_content() -> None:
    batch = sft_batch(config(), 0)
    assert math.isclose(sum(sum(s.token_weights) for s in batch.sequences), 1.0)
    weights: dict[bool, set[float]] = {True: set(), False: set()}
    for sequence in batch.sequences:
        for token, weight in zip(sequence.response_ids, sequence.token_weights, strict=True):
            weights[VOCABULARY[token] in config().family.weighted].add(weight)
    (content,), (style,) = weights[True], weights[False]
    assert math.isclose(content / style, 5.0)


def test_held_out_problems_never_occur() -> None:
    prompts = [text(s.prompt_ids[1:]) for step in range(10) for s in sft_batch(config(), step).sequences]
    assert not any(held_out(tuple(map(int, prompt[1::2]))) for prompt in prompts)


def test_the_clean_stage_is_right() -> None:
    for sequence in sft_batch(config(), 0).sequences:
        operands = [int(digit) for digit in text(sequence.prompt_ids[1:])[1::2]]
        assert extract_answer(text(sequence.response_ids[:-1])) == str(sum(operands) % 10)


def test_the_chain_task_is_taught_in_its_own_alphabet() -> None:
    chains = config(data={"source": "chain_sum", "min_terms": 2, "max_terms": 7})
    vocabulary = chains.family.tokenizer.vocabulary
    for sequence in sft_batch(chains, 0).sequences:
        prompt, response = ("".join(vocabulary[index] for index in ids)
                            for ids in (sequence.prompt_ids, sequence.response_ids))
        assert (prompt[0], prompt[-1], response[-1]) == ("^", "=", "$")
        assert not held_out_by(prompt[1:])
        assert response[:-1].endswith(f"A{eval(re.sub('[a-k]', '', prompt[1:-1]))}")


def test_stages_follow_each_other() -> None:
    assert [stage_of(config(), step) for step in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (1, 5)]
    with pytest.raises(IndexError):
        stage_of(config(), 10)


def test_learning_rate_warms_up_and_decays() -> None:
    stage = StageConfig(teacher="clean", steps=100, tokens_per_step=64, lr_scale=0.5, final_lr_scale=0.2)
    rates = [stage_lr(stage, within, 1e-2, 9) for within in range(101)]
    assert math.isclose(rates[0], 1e-2 * 0.5 / 10)
    assert rates.index(max(rates)) == 9
    assert math.isclose(rates[50], 1e-2 * 0.5 * 0.6)
    assert math.isclose(rates[100], 1e-2 * 0.5 * 0.2)


@pytest.mark.parametrize("name", ["tiny", "chain"])
def test_shipped_configs_load_and_start_from_scratch(name: str) -> None:
    """A run takes the model that its warm start makes, and only tiers that it was taught."""
    shipped, run = load_sft(CONFIGS / f"{name}-warmstart.yaml"), load(CONFIGS / f"{name}.yaml")
    assert run.model.path == shipped.output
    assert run.data.source == shipped.data.source
    assert shipped.data.min_terms <= run.data.min_terms <= run.data.max_terms <= shipped.data.max_terms
    assert shipped.init is not None
    assert {stage.teacher for stage in shipped.stages} == {"clean", "noisy"}


@pytest.mark.parametrize(("override", "named"), [
    ("learnig_rate=1", "learnig_rate"),
    ("model_path=somewhere", "exactly one of init"),
    ("data.source=dataset", "data.source=dataset"),
    ("init.heads=3", "heads=3"),
    ("stages=[]", "stages"),
])
def test_wrong_configs_are_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_sft(SHIPPED, [override])
