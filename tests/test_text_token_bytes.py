# SPDX-License-Identifier: Apache-2.0
"""Byte tables and the search for special tokens."""

import random
import re

from tokenizers import pre_tokenizers

from paged.text.special_tokens import SpecialTokens
from paged.text.token_bytes import TokenBytes, byte_level_alphabet, byte_level_table, sentencepiece_pieces


def pieces(tokens: list[str]) -> list[bytes]:
    table = byte_level_table(tokens, [])
    return [table[token] for token in range(len(table))]


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    alphabet = byte_level_alphabet()
    assert len(alphabet) == len(set(alphabet)) == 256
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())


def test_byte_level_tokens_are_bytes_and_foreign_ones_their_own_text() -> None:
    alphabet = byte_level_alphabet()
    assert pieces(list(alphabet)) == [bytes([byte]) for byte in range(256)]
    tokens = ["Ġa", "日本", "", "ÃŁ", "a b", "x"]
    assert pieces(tokens) == [b" a", "日本".encode(), b"", "ß".encode(), b"a b", b"x"]
    assert pieces([]) == []


def test_sentencepiece_tokens() -> None:
    tokens = ["▁a▁", "<0xE2>", "<0xe2>", "é"]
    assert sentencepiece_pieces(tokens, True) == [b" a ", b"\xe2", b"<0xe2>", "é".encode()]
    assert sentencepiece_pieces(tokens, False)[1] == b"<0xE2>"


def test_special_tokens_can_be_left_out() -> None:
    table = TokenBytes.of([b"<s>", b"a", b"", b"bc", b"</s>"], [0, 4])
    assert table.join([0, 1, 3, 4], skip_special_tokens=True) == b"abc"
    assert table.join([0, 1, 3, 4], skip_special_tokens=False) == b"<s>abc</s>"


def test_special_tokens_are_found_as_a_regular_expression_finds_them() -> None:
    tokens = ["<a>", "<a>b", "<", "ab", "^-]", "]"]
    special = SpecialTokens({token: index for index, token in enumerate(tokens)})
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("<a>b^-]x") for _ in range(rng.randrange(12)))
        expected = [tokens.index(part) if part in tokens else part for part in pattern.split(text) if part]
        assert list(special.split(text)) == expected
    assert list(SpecialTokens({}).split("abc")) == ["abc"]
