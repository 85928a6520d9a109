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
from paged.text.backend import Backend
from paged.text.gguf_pre_tokenizers import Splitting, splitting_of
from paged.text.token_bytes import TokenBytes, byte_level_pieces, sentencepiece_pieces

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


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> Backend:
    import tokenizers

    from paged.text.tokenizers_backend import TokenizersEncoder, library_errors

    splitting = splitting_of(file.metadata.get(_KEY + "pre", "default"), str(file.path))
    merges = _merges(file)
    ids = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
    with library_errors(f"{file.path}: {_KEY}merges"):
        bpe = tokenizers.models.BPE(ids, merges, ignore_merges=splitting.ignore_merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    _configure(tokenizer, splitting)
    special = vocabulary.ids(spm.CONTROL, spm.UNKNOWN)
    tokenizer.add_special_tokens(sorted(special, key=special.__getitem__))
    added = vocabulary.ids(spm.USER_DEFINED)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    _frame(tokenizer, *_framing_ids(file, vocabulary, splitting.adds_bos), vocabulary)
    token_bytes = TokenBytes.of(byte_level_pieces(vocabulary.tokens), special.values())
    return Backend(TokenizersEncoder(tokenizer, str(file.path)), token_bytes)


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    """Each is written as two tokens with one space between."""
    written = _array(file, "merges").strings()
    halves = " ".join(written).split(" ")
    merges = list(zip(halves[::2], halves[1::2], strict=False))
    if any(map(ne, map(" ".join, merges), written)) or len(halves) != 2 * len(written):
        raise CheckpointError(f"{file.path}: {_KEY}merges: expected two tokens with one space between in each")
    return merges


def _configure(tokenizer: Any, splitting: Splitting) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _frame(tokenizer: Any, bos: int | None, eos: int | None, vocabulary: _Vocabulary) -> None:
    """Puts the given special tokens around what is encoded with special tokens."""
    from tokenizers import processors

    used = {vocabulary.tokens[token]: token for token in (bos, eos) if token is not None}
    if used:
        parts = [[] if token is None else [vocabulary.tokens[token]] for token in (bos, eos)]
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
