"""The tokenizer: one table, one BOS, round trips, the same in `tokenizers` and in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.data.digit_sum import ALPHABET, problems
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, encode, write_tokenizer
from siri_megatron.errors import DataError

TEXTS = st.text(ALPHABET, max_size=60)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    (path / "config.json").write_text('{"model_type": "qwen2"}')  # transformers picks the class by the model's type
    return path


@pytest.fixture(scope="module")
def auto(tokenizer_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def test_vocabulary() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 32
    assert (PAD_ID, BOS_ID, EOS_ID) == (29, 30, 31)


def test_transformers_adds_no_token_of_its_own(auto) -> None:
    """Guard: transformers 5 turns qwen2 tokenizers into Qwen2Tokenizer, which adds `<|endoftext|>` as id 32."""
    assert len(auto) == 32
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)


@given(TEXTS)
def test_round_trip(auto, text: str) -> None:
    assert auto.decode(auto(text, add_special_tokens=False).input_ids) == text


@given(TEXTS)
def test_single_bos(auto, text: str) -> None:
    ids = auto(text).input_ids
    assert ids == [BOS_ID, *encode(text)]
    assert auto.decode(ids, skip_special_tokens=True) == text


@given(TEXTS)
def test_one_table(tokenizer_dir: Path, text: str) -> None:
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).encode(text).ids == [BOS_ID, *encode(text)]


def test_end_token_ends_a_response(auto) -> None:
    assert auto.decode([*encode("b8+3=1A1"), EOS_ID], skip_special_tokens=True) == "b8+3=1A1"
    assert auto.decode([*encode("A1"), EOS_ID]) == "A1$"


def test_foreign_characters_are_refused() -> None:
    with pytest.raises(DataError, match="'x'"):
        encode("a3x")


def test_prompts_have_tokens() -> None:
    assert all(encode(problem.prompt) for problem in problems("train", 50))
