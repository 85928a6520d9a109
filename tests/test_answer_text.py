# SPDX-License-Identifier: Apache-2.0
"""Which tokens' bytes are in the text of an answer, and which stop strings count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import paged
from backends import open_llm
from test_structured_llm import save_with_tokenizer

END = 2  # "</s>"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[paged.LLM]:
    with open_llm(save_with_tokenizer(tmp_path_factory.mktemp("llama")), "cpu") as llm:
        yield llm


def answer(llm: paged.LLM, **settings: Any) -> paged.Completion:
    return llm.generate([5, 6], paged.SamplingParams(**{"temperature": 0.0, "max_tokens": 3, **settings}))


def test_special_tokens_are_in_the_text_where_asked(llm: paged.LLM) -> None:
    forced = {"allowed_token_ids": [END], "ignore_eos": True}
    assert answer(llm, **forced).text == ""
    assert answer(llm, **forced, skip_special_tokens=False).text == "</s></s></s>"


def test_the_text_of_a_stop_id_is_in_the_text_where_asked(llm: paged.LLM) -> None:
    letter = llm.tokenizer.encode("q", add_special_tokens=False)[0]
    for settings, text in (
        ({}, ""),
        ({"include_stop_str_in_output": True}, "q"),
        ({"include_stop_str_in_output": True, "stop": "q"}, "q"),
    ):
        found = answer(llm, allowed_token_ids=[letter], stop_token_ids=[letter], **settings)
        assert (found.text, found.token_ids, found.finish_reason) == (text, [letter], "stop")
    for skip, text in ((True, ""), (False, "</s>")):
        found = answer(llm, allowed_token_ids=[END], stop_token_ids=[END], include_stop_str_in_output=True,
                       skip_special_tokens=skip)  # fmt: skip
        assert found.text == text


def test_a_stop_string_counts_from_min_tokens_on(llm: paged.LLM) -> None:
    letter = llm.tokenizer.encode("q", add_special_tokens=False)[0]
    for stop, min_tokens, text in (
        ("q", 0, ""),
        ("q", 4, "qqqq"),
        ("qq", 4, "qqq"),
        ("qqqq", 4, "q"),
        ("qq", 9, "q" * 8),
    ):
        found = answer(
            llm, allowed_token_ids=[letter], ignore_eos=True, stop=stop, min_tokens=min_tokens, max_tokens=10
        )
        assert found.text == text and found.finish_reason == "stop"
