# SPDX-License-Identifier: Apache-2.0
"""Encoding with the `sentencepiece` library: tokenizer.model, and the `llama` vocabulary of a GGUF file.

The library does the pieces. Special tokens in the text and the space in front of it (`add_dummy_prefix`) are handled
here, because models differ in whether text after a special token gets that space too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sentencepiece

from paged.loading.errors import CheckpointError
from paged.text.special_tokens import SpecialTokens


@dataclass(frozen=True, slots=True)
class Framing:
    """What goes around text. Ids are added where the caller asks for special tokens."""

    bos: int | None = None
    eos: int | None = None
    prefix: str = ""  # in front of the text
    inner_prefix: str = ""  # in front of text that follows a special token


class SentencePieceEncoder:
    def __init__(
        self, processor: "sentencepiece.SentencePieceProcessor", special: Mapping[str, int], framing: Framing
    ) -> None:
        """`processor` must not add a prefix by itself; `special` is what it cannot find in text."""
        self._processor = processor
        self._special = SpecialTokens(special)
        self._framing = framing

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        framing = self._framing
        token_ids = [framing.bos] if add_special_tokens and framing.bos is not None else []
        prefix = framing.prefix
        for part in self._special.split(text):
            if isinstance(part, int):
                token_ids.append(part)
            else:
                token_ids += self._processor.encode(prefix + part)
            prefix = framing.inner_prefix
        if add_special_tokens and framing.eos is not None:
            token_ids.append(framing.eos)
        return token_ids


def load_processor(serialized: bytes, where: str) -> "sentencepiece.SentencePieceProcessor":
    """Raises CheckpointError if sentencepiece refuses the model."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(serialized)
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{where}: sentencepiece refuses the model: {error}") from error
    return processor
