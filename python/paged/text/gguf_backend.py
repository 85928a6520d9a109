# SPDX-License-Identifier: Apache-2.0
"""The vocabulary inside a GGUF file, run by the library it was made for.

`gpt2` (byte-level BPE with merges) is run by `tokenizers`; `llama` (sentencepiece BPE with scores, Gemma's too) by
`sentencepiece`, from a model written in memory.
"""

from dataclasses import dataclass
from operator import ne
from typing import Any

import numpy as np
import numpy.typing as npt

from paged.loading.errors import CheckpointError
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_metadata import GgufArray
from paged.text import sentencepiece_model as spm
from paged.text.backend import Backend, Encoder, LateEncoder
from paged.text.gguf_pre_tokenizers import Splitting, splitting_of
from paged.text.token_bytes import TokenBytes, byte_level_table, sentencepiece_pieces

_KEY = "tokenizer.ggml."


@dataclass(frozen=True, eq=False, slots=True)
class _Vocabulary:
    tokens: list[str]
    types: npt.NDArray[np.int64]  # [number of tokens] as in sentencepiece_model

    def ids(self, *types: int) -> dict[str, int]:
        return {self.tokens[token]: token for token in np.flatnonzero(np.isin(self.types, types)).tolist()}


def load_gguf_tokenizer(file: GgufFile) -> Backend:
    """Raises CheckpointError if the vocabulary is broken or of a kind not known."""
    kind = file.metadata.get(_KEY + "model")
    vocabulary = _vocabulary(file)
    if kind == "gpt2":
        return _byte_level(file, vocabulary)
    if kind == "llama":
        return _sentencepiece(file, vocabulary)
    raise CheckpointError(f"{file.path}: {_KEY}model: expected gpt2 or llama, found {kind!r}")


def _array(file: GgufFile, key: str) -> GgufArray:
    array = file.metadata.get(_KEY + key)
    if not isinstance(array, GgufArray):
        raise CheckpointError(f"{file.path}: {_KEY}{key}: expected an array, found {array!r}")
    return array


def _numbers(file: GgufFile, key: str, count: int) -> npt.NDArray[Any]:
    numbers = _array(file, key).numbers()
    if len(numbers) != count:
        raise CheckpointError(
            f"{file.path}: {_KEY}{key}: expected one for each of {count} tokens, found {len(numbers)}"
        )
    return numbers


def _vocabulary(file: GgufFile) -> _Vocabulary:
    tokens = _array(file, "tokens").strings()
    if not all(tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{file.path}: {_KEY}tokens: expected texts that differ and are not empty")
    types = _numbers(file, "token_type", len(tokens))
    if not np.isin(types, range(spm.NORMAL, spm.BYTE + 1)).all():
        raise CheckpointError(f"{file.path}: {_KEY}token_type: expected 1 to 6, found {np.unique(types)[:20].tolist()}")
    return _Vocabulary(tokens, types.astype(np.int64))


def _flag(file: GgufFile, key: str, default: bool) -> bool:
    value = file.metadata.get(_KEY + key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{file.path}: {_KEY}{key}: expected true or false, found {value!r}")
    return value


def _token_id(file: GgufFile, name: str, vocabulary: _Vocabulary) -> int | None:
    value = file.metadata.get(f"{_KEY}{name}_token_id")
    if value is not None and (type(value) is not int or not 0 <= value < len(vocabulary.tokens)):
        count = len(vocabulary.tokens)
        raise CheckpointError(f"{file.path}: {_KEY}{name}_token_id: expected an id below {count}, found {value!r}")
    return value


def _framing_ids(file: GgufFile, vocabulary: _Vocabulary, adds_bos: bool) -> tuple[int | None, int | None]:
    bos = _token_id(file, "bos", vocabulary) if _flag(file, "add_bos_token", adds_bos) else None
    eos = _token_id(file, "eos", vocabulary) if _flag(file, "add_eos_token", False) else None
    return bos, eos


@dataclass(frozen=True, eq=False, slots=True)
class _ByteLevel:
    """What an encoder is made of, apart from the file, which is closed by then."""

    tokens: GgufArray
    merges: GgufArray
    special: list[int]
    added: list[int]
    splitting: Splitting
    framing: tuple[int | None, int | None]  # bos and eos, where they go around text

    def encoder(self) -> Encoder:
        """Raises CheckpointError if the merges are broken."""
        import tokenizers

        from paged.text.tokenizers_backend import TokenizersEncoder, library_errors

        where, tokens = str(self.tokens.path), self.tokens.strings()
        ids = dict(zip(tokens, range(len(tokens)), strict=True))
        with library_errors(f"{where}: {_KEY}merges"):
            bpe = tokenizers.models.BPE(ids, _pairs(self.merges), ignore_merges=self.splitting.ignore_merges)
        tokenizer = tokenizers.Tokenizer(bpe)
        _configure(tokenizer, self.splitting)
        tokenizer.add_special_tokens([tokens[token] for token in self.special])
        tokenizer.add_tokens([tokenizers.AddedToken(tokens[token], normalized=False) for token in self.added])
        _frame(tokenizer, self.framing, tokens)
        return TokenizersEncoder(tokenizer, where)


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> Backend:
    splitting = splitting_of(file.metadata.get(_KEY + "pre", "default"), str(file.path))
    special = list(vocabulary.ids(spm.CONTROL, spm.UNKNOWN).values())
    source = _ByteLevel(
        _array(file, "tokens").detached(), _array(file, "merges").detached(), special,
        list(vocabulary.ids(spm.USER_DEFINED).values()), splitting,
        _framing_ids(file, vocabulary, splitting.adds_bos),
    )  # fmt: skip
    return Backend(LateEncoder(source.encoder), byte_level_table(vocabulary.tokens, special))


def _pairs(array: GgufArray) -> list[tuple[str, str]]:
    """The merges, each written as two tokens with one space between."""
    written = array.strings()
    halves = " ".join(written).split(" ")
    merges = list(zip(halves[::2], halves[1::2], strict=False))
    if any(map(ne, map(" ".join, merges), written)) or len(halves) != 2 * len(written):
        raise CheckpointError(f"{array.path}: {_KEY}merges: expected two tokens with one space between in each")
    return merges


def _configure(tokenizer: Any, splitting: Splitting) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _frame(tokenizer: Any, framing: tuple[int | None, int | None], tokens: list[str]) -> None:
    """Puts the given special tokens around what is encoded with special tokens."""
    from tokenizers import processors

    used = {tokens[token]: token for token in framing if token is not None}
    if used:
        parts = [[] if token is None else [tokens[token]] for token in framing]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*parts[0], "$A", *parts[1]], special_tokens=list(used.items())
        )


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> Backend:
    from paged.text.sentencepiece_backend import Framing, SentencePieceEncoder, load_processor

    unknown = _token_id(file, "unknown", vocabulary)
    if unknown is None:
        raise CheckpointError(f"{file.path}: {_KEY}unknown_token_id: expected an id, found none")
    # Converters mark the unknown token as a control token too; sentencepiece wants exactly one unknown.
    types = np.where(vocabulary.types == spm.UNKNOWN, spm.CONTROL, vocabulary.types).tolist()
    types[unknown] = spm.UNKNOWN
    scores = _numbers(file, "scores", len(types)).tolist()
    # Converters write the user's own tokens with real spaces; sentencepiece looks for them in escaped text.
    tokens = [
        token.replace(" ", "▁") if type == spm.USER_DEFINED else token
        for token, type in zip(vocabulary.tokens, types, strict=True)
    ]
    processor = load_processor(spm.model(tokens, scores, types, unknown), str(file.path))
    adds_prefix = _flag(file, "add_space_prefix", True)
    prefix = " " if adds_prefix else ""
    bos, eos = _framing_ids(file, vocabulary, True)
    special = vocabulary.ids(spm.CONTROL, spm.UNKNOWN) | {vocabulary.tokens[unknown]: unknown}
    encoder = SentencePieceEncoder(processor, special, Framing(bos, eos, prefix, prefix))
    pieces = sentencepiece_pieces(vocabulary.tokens, spm.BYTE in types)
    return Backend(encoder, TokenBytes.of(pieces, special.values()), adds_prefix)
