# SPDX-License-Identifier: Apache-2.0
"""The chat template inside a GGUF file, and the texts of the special tokens that templates know by name."""

from paged.loading.errors import CheckpointError
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_metadata import GgufArray

_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_chat_template(file: GgufFile) -> tuple[str | None, dict[str, str]]:
    """The Jinja source, None if there is none, and name -> text of special tokens."""
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file.path}: tokenizer.chat_template: expected a string, found {template!r}")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if template is None or not isinstance(tokens, GgufArray):
        return template, {}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    return template, {name: tokens.string(i) for name, i in ids.items() if type(i) is int and 0 <= i < tokens.count}
