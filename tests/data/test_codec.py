"""The text codec. Oracle: the tokenizer's own `encode`, and ids written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import DataConfig
from siri_megatron.data.codec import TextCodec, fill
from siri_megatron.data.digit_sum import ALPHABET
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, encode, write_tokenizer
from siri_megatron.data.prompts import eval_prompts, train_prompts
from siri_megatron.errors import ConfigError, ModelError

CHAT = "{% for m in messages %}^a{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}|{% endif %}"


def model_dir(path: Path, *, config: dict | None = None, generation: dict | None = None, **tokenizer: object) -> Path:
    """A model directory without weights; keyword arguments change tokenizer_config.json."""
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": 32} if config is None else config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **tokenizer}))
    return path


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(model_dir(tmp_path_factory.mktemp("model"), chat_template=CHAT))


@given(st.text(alphabet=ALPHABET, min_size=1, max_size=30))
def test_round_trip_and_single_bos(codec: TextCodec, text: str) -> None:
    ids = codec.encode_prompt(text)
    assert ids == [BOS_ID, *encode(text)]
    assert codec.encode_prompt("^" + text) == ids
    assert codec.decode([*ids, EOS_ID]) == text
    assert codec.decode([*ids, EOS_ID], skip_special=False) == f"^{text}$"


def test_ids(codec: TextCodec) -> None:
    assert (codec.stop_ids, codec.pad_id, codec.vocab_size) == ((EOS_ID,), PAD_ID, 32)


def test_templates(codec: TextCodec) -> None:
    assert codec.encode_prompt("3", template="b{prompt}|") == [BOS_ID, *encode("b3|")]
    assert codec.encode_prompt("3", chat=True) == [BOS_ID, *encode("a3|")]
    assert codec.encode_prompt("3", template="b{prompt}", chat=True) == [BOS_ID, *encode("ab3|")]
    assert fill("x", "\\boxed{} {prompt} {other}") == "\\boxed{} x {other}"
    with pytest.raises(ConfigError, match="'b'"):
        codec.encode_prompt("3", template="b")


def test_conversations(codec: TextCodec) -> None:
    """The chat template gets every turn; a prompt template is filled with the last one."""
    turns = [("system", "1"), ("user", "2")]
    assert codec.encode_prompts([turns], chat=True) == [[BOS_ID, *encode("a1"), BOS_ID, *encode("a2|")]]
    assert codec.encode_prompts([turns, "3"], template="b{prompt}", chat=True) == [
        [BOS_ID, *encode("a1"), BOS_ID, *encode("ab2|")], [BOS_ID, *encode("ab3|")]]
    with pytest.raises(ConfigError, match=r"data\.chat is not set, but a prompt is a conversation of 2 messages"):
        codec.encode_prompts([turns])


def test_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        TextCodec.load(model_dir(tmp_path)).encode_prompt("3", chat=True)


@pytest.mark.parametrize(("config", "generation", "tokenizer_eos", "stops"), [
    ({}, None, "$", (31,)), ({"eos_token_id": 5}, None, "$", (5, 31)), ({}, {"eos_token_id": [4, 5]}, None, (4, 5)),
    ({"eos_token_id": 31}, {"eos_token_id": 31}, "$", (31,)),
])
def test_stop_ids_of_every_source(tmp_path: Path, config: dict, generation: dict | None, tokenizer_eos: str | None,
                                  stops: tuple[int, ...]) -> None:
    path = model_dir(tmp_path, config={"vocab_size": 32, **config}, generation=generation, eos_token=tokenizer_eos)
    assert TextCodec.load(path).stop_ids == stops


def test_model_without_stop_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="names no stop token") as caught:
        TextCodec.load(model_dir(tmp_path, eos_token=None))
    assert "generation_config.json" in caught.value.fix


def test_stop_id_outside_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\[99\].*32"):
        TextCodec.load(model_dir(tmp_path, generation={"eos_token_id": 99}))


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, "{ broken"])
def test_broken_model_directory_is_named(tmp_path: Path, broken: str, content: str | None) -> None:
    path = model_dir(tmp_path)
    (path / broken).unlink()
    if content is not None:
        (path / broken).write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        TextCodec.load(path)


def test_generated_prompts(codec: TextCodec) -> None:
    config = DataConfig(train_problems=20)
    train, held_out = train_prompts(config, codec), eval_prompts(config, codec, 10)
    assert (len(train), len(held_out)) == (20, 10)
    assert train == train_prompts(config, codec)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in held_out}
    digits = [int(character) for character in train[3].text[1::2]]
    assert train[3].answer == str(sum(digits) % 10)
    assert train[3].tier == f"k={len(digits)}"
    assert list(train[3].token_ids) == [BOS_ID, *encode(train[3].text)]
