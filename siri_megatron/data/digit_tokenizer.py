"""The tokenizer of the digit-sum task: 32 tokens (`character_tokenizer`)."""

from __future__ import annotations

from siri_megatron.data.character_tokenizer import CharacterTokenizer
from siri_megatron.data.digit_sum import ALPHABET

TOKENIZER = CharacterTokenizer(ALPHABET)
VOCABULARY = TOKENIZER.vocabulary
PAD_ID, BOS_ID, EOS_ID = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id
encode, write_tokenizer = TOKENIZER.encode, TOKENIZER.write
