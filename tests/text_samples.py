# SPDX-License-Identifier: Apache-2.0
"""Strings that tokenizers get wrong."""

import random

SAMPLES = [
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    "  two  spaces\n\n\nnew\tlines ",
    "def f(x):\n    return x ** 2  # ok\r\n\r\n",
    "don't I'LL we've 'tis",
    "🎉👩‍👩‍👧‍👦 🏳️‍🌈 emoji",
    "日本語のテキスト 中文 한국어",
    "العربية مرحبا بكم",
    "עברית हिन्दी ไทย",
    "é e\u0301 a\u0300\u0301\u0302 Å",
    "\x00\x01\x7f \u200b\u202e\ufeff",
    "▁ under ▁▁ score",
    "Ġ ĉ Ċ Ä",
    "<0x41> <0xE2>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ ﬁ",
    "a" * 300,
    "\t\t\t x \u3000 y\u00a0z",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Valid Unicode from everywhere, with much ASCII and white space. No digits or other numerals."""
    rng = random.Random(seed)
    ranges = [(32, 127), (32, 127), (32, 33), (10, 11), (0xA0, 0x3000), (0x1F300, 0x1F700), (0, 0xD800)]
    texts = []
    for _ in range(count):
        characters = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 60))]
        texts.append("".join(character for character in characters if not character.isnumeric()))
    return texts
