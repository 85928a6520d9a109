# SPDX-License-Identifier: Apache-2.0
"""How byte-level BPE vocabularies of GGUF files split text into words, by the name in `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizers (llama.cpp, llama-vocab.cpp, keeps the same list); each splits what
the one before it left.
"""

from dataclasses import dataclass

from paged.loading.errors import CheckpointError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True, slots=True)
class Splitting:
    patterns: tuple[str, ...]
    nfc: bool = False  # text is brought into Unicode normal form C first
    ignore_merges: bool = False  # a word that is a token is taken whole
    adds_bos: bool = False  # unless the file says otherwise


_GPT2_SPLITTING = Splitting((_GPT2,))
_LLAMA3_SPLITTING = Splitting((_LLAMA3,), ignore_merges=True, adds_bos=True)
_QWEN2_SPLITTING = Splitting((_QWEN2,), nfc=True)
_SPLITTINGS = {
    "default": Splitting(_DEFAULT),
    "deepseek-r1-qwen": _QWEN2_SPLITTING,
    "gpt-2": _GPT2_SPLITTING,
    "llama-bpe": _LLAMA3_SPLITTING,
    "llama3": _LLAMA3_SPLITTING,
    "qwen2": _QWEN2_SPLITTING,
    "smollm": Splitting((_DIGIT, _GPT2)),
}


def splitting_of(name: object, where: str) -> Splitting:
    """Raises CheckpointError on a name that is not known: splitting words otherwise would quietly harm the model."""
    if not isinstance(name, str) or name not in _SPLITTINGS:
        known = ", ".join(_SPLITTINGS)
        raise CheckpointError(f"{where}: tokenizer.ggml.pre: expected one of {known}, found {name!r}")
    return _SPLITTINGS[name]
