# SPDX-License-Identifier: Apache-2.0
"""tokenizer.model of a Hugging Face folder, with the added tokens of its tokenizer_config.json."""

from pathlib import Path
from typing import Any

from paged.loading.errors import CheckpointError
from paged.loading.model_folder import file_in, read_json
from paged.text.backend import Backend
from paged.text.sentencepiece_backend import Framing, SentencePieceEncoder, load_processor
from paged.text.sentencepiece_model import without_prefix
from paged.text.token_bytes import TokenBytes, sentencepiece_pieces

_MAX_BYTES = 64 << 20
_MAX_TOKENS = 1 << 22
_UNSUPPORTED_FLAGS = ("lstrip", "rstrip", "single_word")


def load_sentencepiece(folder: Path) -> Backend:
    """Raises CheckpointError if the files are broken or ask for what is not supported."""
    path = file_in(folder, "tokenizer.model")
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: expected a sentencepiece model of at most {_MAX_BYTES} bytes")
    serialized = path.read_bytes()
    original = load_processor(serialized, str(path))
    processor = load_processor(without_prefix(serialized), str(path))
    config = read_json(folder, "tokenizer_config.json") or {}
    added = _added_tokens(folder, config)
    size = processor.get_piece_size()
    try:
        tokens = [processor.id_to_piece(token) for token in range(size)]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: a piece is not UTF-8: {error}") from error
    control = {tokens[token]: token for token in range(size) if processor.is_control(token)}
    special = {token for content, (token, is_special) in added.items() if is_special} | set(control.values())
    special |= {processor.unk_id()}
    texts = control | {content: token for content, (token, _) in added.items()}
    for content, token in texts.items():
        tokens += [""] * (token + 1 - len(tokens))
        tokens[token] = content
    adds_prefix = original.encode("a", out_type=str)[0].startswith("▁")
    framing = _framing(config, adds_prefix, processor.bos_id(), processor.eos_id())
    pieces = sentencepiece_pieces(tokens, any(processor.is_byte(token) for token in range(size)))
    return Backend(SentencePieceEncoder(processor, texts, framing), TokenBytes.of(pieces, special), adds_prefix)


def _framing(config: dict[str, Any], adds_prefix: bool, bos: int, eos: int) -> Framing:
    """The defaults are those of transformers' Llama tokenizer; an id of -1 means that the model has no such token."""
    return Framing(
        bos=bos if config.get("add_bos_token", True) and bos >= 0 else None,
        eos=eos if config.get("add_eos_token", False) and eos >= 0 else None,
        prefix=" " if adds_prefix else "",
        inner_prefix=" " if adds_prefix and config.get("legacy", False) else "",
    )


def _is_text(content: str) -> bool:
    """Whether it is some text, without a lone surrogate, which JSON may spell and no UTF-8 has."""
    return content != "" and not any("\ud800" <= character <= "\udfff" for character in content)


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    """Text -> (id, whether it is special)."""
    path = folder / "tokenizer_config.json"
    entries = config.get("added_tokens_decoder", {})
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder: expected an object, found {type(entries).__name__}")
    added = {}
    for key, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if (
            not key.isdecimal()
            or len(key) > 9
            or int(key) >= _MAX_TOKENS
            or not isinstance(content, str)
            or not _is_text(content)
        ):
            raise CheckpointError(
                f"{path}: added_tokens_decoder: expected id -> {{content}}, found {key!r:.99}: {entry!r:.99}"
            )
        if set_flags := [flag for flag in _UNSUPPORTED_FLAGS if entry.get(flag)]:
            raise CheckpointError(
                f"{path}: added token {content!r}: {set_flags[0]} is supported with a tokenizer.json only; save one "
                "with transformers"
            )
        added[content] = (int(key), bool(entry.get("special", False)))
    return added
