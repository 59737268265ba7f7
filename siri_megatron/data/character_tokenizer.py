"""Tokenizers of the generated families: one token a character, written as a Hugging Face fast tokenizer.

Ids are the positions in `vocabulary`: the family's alphabet, then PAD `_`, BOS `^` and EOS `$`.
The post-processor puts exactly one BOS before a text encoded with special tokens, so prompts are written without it.

Invariants:
    round trip: decoding the encoding of a text over the alphabet gives the text
    single BOS: encoding with special tokens adds one BOS and nothing else
    one table: `encode` here and the written tokenizer agree
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from siri_megatron.errors import DataError

PAD, BOS, EOS = "_", "^", "$"


@dataclass(frozen=True)
class CharacterTokenizer:
    """One token for each character of the alphabet."""

    alphabet: str

    @property
    def vocabulary(self) -> str:
        return self.alphabet + PAD + BOS + EOS

    @cached_property
    def ids(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.vocabulary)}

    @property
    def pad_id(self) -> int:
        return self.ids[PAD]

    @property
    def bos_id(self) -> int:
        return self.ids[BOS]

    @property
    def eos_id(self) -> int:
        return self.ids[EOS]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens added.

        Raises:
            DataError: a character is not in the vocabulary.
        """
        try:
            return [self.ids[character] for character in text]
        except KeyError as error:
            raise DataError(f"character {error.args[0]!r} of {text!r} has no token",
                            rule=f"texts of this family are written with {self.vocabulary!r}") from None

    def write(self, model_dir: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; `AutoTokenizer.from_pretrained(model_dir)` reads them."""
        model_dir.mkdir(parents=True, exist_ok=True)
        files = {"tokenizer.json": self._tokenizer_json(), "tokenizer_config.json": _tokenizer_config()}
        for name, content in files.items():
            (model_dir / name).write_text(json.dumps(content, indent=2) + "\n")

    def _tokenizer_json(self) -> dict[str, Any]:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

        tokenizer = Tokenizer(models.WordLevel(self.ids))  # no unknown token: a foreign character is an error
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, self.bos_id)])
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)])
        return json.loads(tokenizer.to_str())


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD, "bos_token": BOS, "eos_token": EOS,
        # transformers 5 makes a Qwen2Tokenizer of every qwen2 model's tokenizer, whatever is written here; without an
        # explicit null it would add its own `<|endoftext|>` as one id more, outside of the model's vocabulary
        "unk_token": None,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "model_input_names": ["input_ids", "attention_mask"],
    }
