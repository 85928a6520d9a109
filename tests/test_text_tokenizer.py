# SPDX-License-Identifier: Apache-2.0
"""Real tokenizers, from folder and GGUF: ids and text equal to those of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer

from paged.loading import open_checkpoint
from paged.text import Tokenizer, load_tokenizer
from text_samples import SAMPLES, random_texts

TEXTS = SAMPLES + random_texts(300)
SPECIAL = ["<|im_start|>user\nhi<|im_end|> x", "<bos>a <start_of_turn>user\n<end_of_turn><unused5>é"]
NAMES = ["smollm2-135m-instruct.gguf", "smollm2-135m-instruct", "gemma-3-270m.gguf", "gemma-3-270m"]


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Any]:
    return {}


def _load(path: Path, loaded: dict[Path, Any]) -> tuple[Tokenizer, Any]:
    """Ours, and transformers' for the same file."""
    if path not in loaded:
        with open_checkpoint(path) as checkpoint:
            ours = load_tokenizer(path, checkpoint)
        if path.suffix == ".gguf" and not path.with_suffix("").is_dir():
            theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        else:
            theirs = AutoTokenizer.from_pretrained(path.with_suffix(""))
        loaded[path] = ours, theirs
    return loaded[path]


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_text_are_those_of_transformers(
    real_models: Mapping[str, Path], loaded: dict[Path, Any], name: str
) -> None:
    """Without numerals: transformers' conversion of a GGUF file forgets that SmolLM2 splits them (test below)."""
    ours, theirs = _load(real_models[name], loaded)
    for text in TEXTS + SPECIAL:
        token_ids = theirs(text)["input_ids"]
        assert ours.encode(text) == token_ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"], text
        for skip in (True, False):
            expected = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(token_ids, skip) == expected, text
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id and ours.eos_token_id == theirs.eos_token_id


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_an_answer_are_what_decoding_adds(
    real_models: Mapping[str, Path], loaded: dict[Path, Any], name: str
) -> None:
    """decode(prompt + output) minus decode(prompt), for prompts that end between characters."""
    ours, theirs = _load(real_models[name], loaded)
    for text in TEXTS:
        token_ids = ours.encode(text)
        for cut in range(0, len(token_ids), 7):
            parts = (token_ids[:cut], token_ids)
            prompt, whole = (theirs.decode(part, True, clean_up_tokenization_spaces=False) for part in parts)
            if whole.startswith(prompt):  # else a character is cut in two
                answer = ours.token_bytes().join(token_ids[cut:], skip_special_tokens=True)
                assert answer.decode(errors="replace") == whole[len(prompt) :]


@pytest.mark.parametrize("name", ["smollm2-135m-instruct.gguf", "smollm2-135m-instruct"])
def test_any_ids_at_all_decode_as_transformers_decodes_them(
    real_models: Mapping[str, Path], loaded: dict[Path, Any], name: str
) -> None:
    ours, theirs = _load(real_models[name], loaded)
    rng = np.random.default_rng(0)
    for _ in range(300):
        token_ids = rng.integers(0, ours.vocab_size, 20).tolist()
        for skip in (True, False):
            expected = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(token_ids, skip) == expected


def test_smollm2_splits_every_numeral(real_models: Mapping[str, Path], loaded: dict[Path, Any]) -> None:
    """As its own tokenizer does: Digits(individual_digits), then GPT-2's byte level."""
    path = real_models["smollm2-135m-instruct.gguf"]
    ours, theirs = _load(path, loaded)
    oracle = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    split = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    oracle.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, oracle.pre_tokenizer])
    for text in [*TEXTS, "123 4567  89\n\n10 3.14", "½ ² ٣ Ⅷ 三 ①", "x1y22z333 \n4"]:
        assert ours.encode(text) == oracle.encode(text).ids


@pytest.mark.parametrize("name", NAMES)
def test_the_byte_table_agrees_with_itself(real_models: Mapping[str, Path], loaded: dict[Path, Any], name: str) -> None:
    ours, theirs = _load(real_models[name], loaded)
    table = ours.token_bytes()
    assert len(table) == ours.vocab_size == len(table.offsets) - 1 == len(table.is_special)
    assert table.offsets[0] == 0 and table.offsets[-1] == len(table.blob)
    assert table.offsets.dtype == np.int32 and (np.diff(table.offsets) >= 0).all()
    blob, offsets, is_special = ours.token_table()
    for token in [*range(300), *range(0, ours.vocab_size, 997)]:
        assert blob[offsets[token] : offsets[token + 1]] == table[token]
    assert is_special is table.is_special
    specials = set(theirs.all_special_ids)
    assert specials <= set(np.flatnonzero(table.is_special).tolist())
    assert table[ours.eos_token_id] == theirs.eos_token.encode()
    assert ours.eos_token_ids == {ours.eos_token_id}


def test_bad_arguments_are_named(real_models: Mapping[str, Path], loaded: dict[Path, Any]) -> None:
    ours, _ = _load(real_models["smollm2-135m-instruct.gguf"], loaded)
    with pytest.raises(TypeError, match="must be a string, got bytes"):
        ours.encode(b"x")
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at 1"):
        ours.encode("a\ud800")
    for token in (-1, ours.vocab_size):
        with pytest.raises(ValueError, match=f"0 to {ours.vocab_size - 1}, got {token}"):
            ours.decode([token])
