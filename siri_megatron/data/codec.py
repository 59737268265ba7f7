"""The one place of tokenisation: text to token ids and back, stop ids, chat template.

Invariants:
    single_bos: an encoded prompt starts with at most one BOS, whether tokenizer, template or text put it there.
    stops_known: a codec has at least one stop id, and every one of them is in the vocabulary.
    round_trip: decoding the ids of a text (special tokens skipped) gives the text, as far as the tokenizer is lossless.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLACE = "{prompt}"

Text = str | Sequence[tuple[str, str]]
"""A prompt: plain text, or a conversation of (role, content) turns."""


class Unencodable(ValueError):
    """The tokenizer fails on a text.

    Args:
        index: of the text, from 0.
    """

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class TextCodec:
    """Tokenizer of a Hugging Face model directory.

    Attributes:
        stop_ids: every token that ends a response: those of generation_config.json, config.json and the tokenizer.
            They are sent with each request, since engines without a tokenizer know none of their own.
        pad_id: the padding token, or the first stop id if the tokenizer has none.
        vocab_size: rows of the model's embedding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, stop_ids: tuple[int, ...], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._rust = tokenizer.backend_tokenizer  # three times faster to decode with
        self.stop_ids, self.vocab_size = stop_ids, vocab_size
        self.pad_id = stop_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._bos = self._added_bos()

    @classmethod
    def load(cls, model_dir: Path) -> TextCodec:
        """Read the tokenizer and the stop ids of a model directory.

        Raises:
            ModelError: no config.json or tokenizer.json, one that cannot be read, or no stop id anywhere.
        """
        config = _read_json(model_dir / "config.json", needed=True)
        tokenizer = _load_tokenizer(model_dir)
        vocab_size = int(config.get("vocab_size") or len(tokenizer))
        generation = _read_json(model_dir / "generation_config.json", needed=False)
        stop_ids = _stop_ids(generation.get("eos_token_id"), config.get("eos_token_id"), tokenizer.eos_token_id)
        _check_stop_ids(model_dir, stop_ids, vocab_size)
        return cls(tokenizer, stop_ids=stop_ids, vocab_size=vocab_size)

    def encode_prompt(self, text: str, *, template: str | None = None, chat: bool = False) -> list[int]:
        """Token ids of one prompt; see `encode_prompts`."""
        return self.encode_prompts([text], template=template, chat=chat)[0]

    def encode_prompts(self, texts: Sequence[Text], *, template: str | None = None,
                       chat: bool = False) -> list[list[int]]:
        """Token ids of prompts, ready for an engine.

        Args:
            template: text with `{prompt}` in it, filled in first (with a conversation's last turn). Other braces
                stay as they are.
            chat: then wrap with the tokenizer's chat template, a plain text as a user turn.

        Raises:
            ConfigError: a template without `{prompt}`, `chat` without a chat template, a conversation without `chat`.
            Unencodable: the tokenizer fails on one.
        """
        whole = [self._wrap(filled(text, template), chat) for text in texts]
        try:
            encoded = self._rust.encode_batch(whole, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  tokenizers raises plain ones
            raise self._first_unencodable(whole) or error from None
        return [self._with_bos(item.ids) if not chat else item.ids for item in encoded]

    def _first_unencodable(self, texts: Sequence[str]) -> Unencodable | None:
        for index, text in enumerate(texts):
            try:
                self._rust.encode(text, add_special_tokens=False)
            except Exception as error:  # noqa: BLE001
                return Unencodable(index, str(error))
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text inside of a sequence: no BOS."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids; `skip_special` leaves out BOS, stop and padding tokens."""
        return self._rust.decode(ids, skip_special_tokens=skip_special)

    def _wrap(self, text: Text, chat: bool) -> str:
        if not chat and isinstance(text, str):
            return text
        if not chat:
            raise ConfigError(f"data.chat is not set, but a prompt is a conversation of {len(text)} messages",
                              rule="messages become text by the model's own chat template", fix="set data.chat=true")
        if not self._tokenizer.chat_template:
            raise ConfigError("data.chat is set, but the tokenizer has no chat template",
                              rule="chat wraps prompts with the model's own template",
                              fix="unset data.chat and give data.template, or take a model with a chat template")
        from jinja2 import TemplateError

        turns = [("user", text)] if isinstance(text, str) else text
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise ConfigError(f"the tokenizer's chat template cannot be used: {error}",
                              rule="chat wraps prompts with the model's own template",
                              fix="mend the template, or unset data.chat and give data.template") from None

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Put the BOS that the tokenizer's post-processor would, unless the text brought its own."""
        return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]

    def _added_bos(self) -> int | None:
        """BOS if this tokenizer adds it to a text. Nothing else that it may add (an EOS, say) belongs in a prompt."""
        bos = self._tokenizer.bos_token_id
        return bos if bos is not None and self._rust.encode("", add_special_tokens=True).ids[:1] == [bos] else None


def filled(text: Text, template: str | None) -> Text:
    """`fill` for a text, or for the last turn of a conversation."""
    if isinstance(text, str):
        return fill(text, template)
    role, content = text[-1]
    return [*text[:-1], (role, fill(content, template))]


def fill(text: str, template: str | None) -> str:
    """The template with `{prompt}` replaced.

    Raises:
        ConfigError: the template has no `{prompt}`.
    """
    if template is None:
        return text
    if PLACE not in template:
        raise ConfigError(f"data.template {template!r} has no {PLACE}", rule=f"{PLACE} is where each prompt goes",
                          fix=f"for example 'Question: {PLACE}\\nAnswer:'")
    return template.replace(PLACE, text)


def _load_tokenizer(model_dir: Path) -> PreTrainedTokenizerFast:
    if not (model_dir / "tokenizer.json").is_file():
        raise ModelError(f"{model_dir} has no tokenizer.json", rule="a model directory carries a Hugging Face fast "
                         "tokenizer", fix="save it there with AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    from transformers import PreTrainedTokenizerFast  # a second of imports, but no torch

    try:
        return PreTrainedTokenizerFast.from_pretrained(model_dir)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"the tokenizer of {model_dir} cannot be read: {error}",
                         rule="tokenizer.json is a Hugging Face fast tokenizer",
                         fix="copy the tokenizer files of the original model again") from None


def _read_json(path: Path, *, needed: bool) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise ModelError(f"{path} does not exist", rule="model.path is a Hugging Face model directory",
                             fix="give the directory that holds config.json")
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", rule="a model directory's configs are JSON",
                         fix="copy the file again") from None
    return content if isinstance(content, dict) else {}


def _stop_ids(*sources: int | list[int] | None) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for source in sources:
        found.update(dict.fromkeys(source if isinstance(source, list) else [] if source is None else [source]))
    return tuple(found)


def _check_stop_ids(model_dir: Path, stop_ids: tuple[int, ...], vocab_size: int) -> None:
    if not stop_ids:
        raise ModelError(f"{model_dir} names no stop token: eos_token_id is missing from generation_config.json, "
                         "config.json and the tokenizer",
                         rule="without a stop token no response can end before the cap",
                         fix="set eos_token_id in generation_config.json")
    outside = [token for token in stop_ids if not 0 <= token < vocab_size]
    if outside:
        raise ModelError(f"stop ids {outside} of {model_dir} lie outside of its vocabulary of {vocab_size}",
                         rule="0 <= stop id < vocab_size", fix="correct eos_token_id in generation_config.json")
