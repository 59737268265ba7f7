"""The tokenizers of the generated families: one table, one BOS, round trips, the same in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config.data import FamilyName
from siri_megatron.data.character_tokenizer import CharacterTokenizer
from siri_megatron.data.families import FAMILIES, Family
from siri_megatron.errors import DataError


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer(family: Family) -> CharacterTokenizer:
    return family.tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tokenizer: CharacterTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(path)
    (path / "config.json").write_text('{"model_type": "qwen2"}')  # transformers picks the class by the model's type
    return path


@pytest.fixture(scope="module")
def auto(tokenizer_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def texts(tokenizer: CharacterTokenizer, data: st.DataObject) -> str:
    return data.draw(st.text(tokenizer.alphabet, max_size=60))


def test_vocabulary(tokenizer: CharacterTokenizer) -> None:
    size = len(tokenizer.vocabulary)
    assert len(set(tokenizer.vocabulary)) == size
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (size - 3, size - 2, size - 1)


def test_transformers_adds_no_token_of_its_own(tokenizer: CharacterTokenizer, auto) -> None:
    """Guard: transformers 5 turns qwen2 tokenizers into Qwen2Tokenizer, which adds `<|endoftext|>` as one id more."""
    assert len(auto) == len(tokenizer.vocabulary)
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id) == (
        tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


@given(st.data())
def test_round_trip(tokenizer: CharacterTokenizer, auto, data: st.DataObject) -> None:
    text = texts(tokenizer, data)
    assert auto.decode(auto(text, add_special_tokens=False).input_ids) == text


@given(st.data())
def test_single_bos(tokenizer: CharacterTokenizer, auto, data: st.DataObject) -> None:
    text = texts(tokenizer, data)
    ids = auto(text).input_ids
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert auto.decode(ids, skip_special_tokens=True) == text


@given(st.data())
def test_one_table(tokenizer: CharacterTokenizer, tokenizer_dir: Path, data: st.DataObject) -> None:
    from tokenizers import Tokenizer

    text, written = texts(tokenizer, data), Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    assert written.encode(text).ids == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_end_token_ends_a_response(tokenizer: CharacterTokenizer, auto) -> None:
    assert auto.decode([*tokenizer.encode("8+3=1A1"), tokenizer.eos_id], skip_special_tokens=True) == "8+3=1A1"
    assert auto.decode([*tokenizer.encode("A1"), tokenizer.eos_id]) == "A1$"


def test_foreign_characters_are_refused(tokenizer: CharacterTokenizer) -> None:
    with pytest.raises(DataError, match="'x'"):
        tokenizer.encode("3x")


def test_prompts_and_responses_have_tokens(family: Family) -> None:
    for problem in family.problems("train", 50, 3, 7):
        assert family.tokenizer.encode(problem.prompt + problem.answer)


@pytest.mark.parametrize(("model", "name"), [("tiny-digits", "digit_sum"), ("tiny-chain", "chain_sum")])
def test_shipped_models_have_this_table(model: str, name: FamilyName) -> None:
    shipped = Path(__file__).parents[2] / "configs/models" / model / "tokenizer.json"
    assert json.loads(shipped.read_text())["model"]["vocab"] == FAMILIES[name].tokenizer.ids
