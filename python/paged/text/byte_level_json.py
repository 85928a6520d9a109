# SPDX-License-Identifier: Apache-2.0
"""A byte-level BPE's tokenizer.json, read without the library: the bytes of its tokens stand there in plain sight. The
library takes several times as long for the file, and is started by the first text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paged.loading.errors import CheckpointError
from paged.text.token_bytes import TokenBytes, byte_level_table


@dataclass(frozen=True, eq=False, slots=True)
class ByteLevelTokens:
    table: TokenBytes
    added: dict[str, int]

    def check(self, found: int, found_added: dict[str, int | None], where: str) -> None:
        """Raises CheckpointError if the library found other tokens in the file. It numbers added ones itself."""
        if found != len(self.table) or found_added != self.added:
            wrong = [text for text in self.added if found_added[text] != self.added[text]]
            raise CheckpointError(f"{where}: expected {len(self.table)} tokens, found {found}; elsewhere: {wrong[:5]}")


def byte_level_tokens(content: dict[str, Any]) -> ByteLevelTokens | None:
    """None unless `content`, the JSON of the file, is a byte-level BPE with ids from 0 on, the added ones last."""
    match content:
        case {"decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": dict(vocabulary)}}:
            ids = dict(vocabulary)
        case _:
            return None
    added: dict[str, int] = {}
    special: list[int] = []
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list):  # the library refuses it in its own words
        return None
    for entry in entries:
        match entry:
            case {"id": int(token), "content": str(text), "special": bool(is_special)} if text not in added:
                if ids.setdefault(text, len(ids)) != token:
                    return None
                added[text] = token
                special += [token] * is_special
            case _:
                return None
    if set(map(type, ids.values())) != {int} or set(ids.values()) != set(range(len(ids))):
        return None
    try:
        return ByteLevelTokens(byte_level_table(sorted(ids, key=ids.__getitem__), special), added)
    except UnicodeEncodeError:  # half a surrogate pair, which the library refuses in its own words
        return None
