# SPDX-License-Identifier: Apache-2.0
"""Everything SamplingParams asks of logits, on every backend, against its definition.

`processed_logits` of the whole vocabulary show exactly what a token is drawn from, so most tests compare all of it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import paged
from backends import open_llm
from sampling_definition import PROMPT, VOCAB, cut, log_softmax, model_logits, penalised, run, values

EDITS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.9},
    {"presence_penalty": -1.0, "frequency_penalty": -0.9},
    {"logit_bias": {17: 9.0, 18: -100.0, 319: 8.5}},
    {"allowed_token_ids": [3, 31, 32, 33, 64, 319]},
    {"min_tokens": 5, "stop_token_ids": [1, 2, 40, 41]},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7, "logit_bias": {5: 4.0, 6: 5.0},
     "allowed_token_ids": [*range(0, VOCAB, 3), 5, 6, 7]},
]  # fmt: skip


@pytest.mark.parametrize("settings", EDITS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_edited_logits_are_those_of_the_definition(
    llm: paged.LLM, settings: dict[str, Any], temperature: float
) -> None:
    completion = run(
        llm, **settings, temperature=temperature, seed=3, logprobs=VOCAB, logprobs_mode="processed_logits"
    )  # fmt: skip
    answer = completion.token_ids
    assert completion.logprobs is not None and len(completion.logprobs) == len(answer) > 0
    for position, of_token in enumerate(completion.logprobs):
        before = answer[:position]
        expected = penalised(model_logits(PROMPT + before), PROMPT, before, settings)
        found = values(of_token) * (temperature or 1.0)
        np.testing.assert_allclose(found, expected, atol=3e-4)
        assert next(iter(of_token)) == answer[position]
        if temperature == 0.0:
            assert found[answer[position]] == found.max()


@pytest.mark.parametrize(
    ("prompt", "words", "answer", "banned"),
    [
        ([1], [[9]], [], 9),
        ([1], [[7, 9]], [7], 9),
        ([1], [[7, 9]], [8], None),
        ([7], [[7, 9]], [], None),  # the prompt does not count
        ([1], [[6, 7, 9]], [6, 7], 9),
        ([1], [[6, 7, 9]], [5, 7], None),
    ],
)
def test_bad_words_forbid_their_last_token(
    llm: paged.LLM, prompt: list[int], words: list[list[int]], answer: list[int], banned: int | None
) -> None:
    """A guide makes the answer; the words are given as tokens, for the tiny model has no tokenizer."""

    class Forced:
        def next_mask(self, token_ids: list[int]) -> npt.NDArray[np.uint32] | None:
            mask = np.zeros(VOCAB // 32, np.uint32)
            if len(token_ids) == len(answer):
                return None
            mask[answer[len(token_ids)] // 32] = 1 << answer[len(token_ids)] % 32
            return mask

    params = paged.SamplingParams(
        temperature=0.0, max_tokens=len(answer) + 1, ignore_eos=True, guide=Forced, logprobs=VOCAB,
        logprobs_mode="processed_logits",
    )  # fmt: skip
    native = llm._native_params(params)
    native.bad_words = words
    assert llm._engine is not None
    request = llm._guides.submit(
        params,
        lambda **guide: llm._engine.submit(prompt, native, 0, **guide),  # type: ignore[union-attr]
    )
    request.wait_finished()
    _, tokens, _, scores = request.answer()
    assert scores is not None
    ids, found, _ = scores
    assert tokens[: len(answer)] == answer
    gone = ids[-1][1:][~np.isfinite(found[-1][1:])].tolist()
    assert gone == ([] if banned is None else [banned])


def test_a_bad_word_of_two_tokens_never_comes_while_steps_are_in_flight(llm: paged.LLM) -> None:
    free = run(llm, max_tokens=30).token_ids
    pairs = [free[i : i + 2] for i in range(len(free) - 1)]
    params = paged.SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    native = llm._native_params(params)
    native.bad_words = pairs
    assert llm._engine is not None
    request = llm._engine.submit(PROMPT, native, 0)
    request.wait_finished()
    tokens = request.answer()[1]
    expected: list[int] = []
    while len(expected) < 30:
        logits = model_logits(PROMPT + expected)
        for first, last in pairs:
            if expected and expected[-1] == first:
                logits[last] = -np.inf
        expected.append(int(logits.argmax()))
    assert tokens == expected


def test_penalties_count_the_token_in_flight(llm: paged.LLM) -> None:
    """A long answer, so that the engine is a step ahead where it can be."""
    for settings in ({"repetition_penalty": 1.6}, {"frequency_penalty": 1.0}, {"presence_penalty": 2.0}):
        tokens = run(llm, **settings, max_tokens=40).token_ids
        expected: list[int] = []
        while len(expected) < 40:
            expected.append(int(penalised(model_logits(PROMPT + expected), PROMPT, expected, settings).argmax()))
        assert tokens == expected


def test_draws_follow_the_distribution(llm: paged.LLM) -> None:
    """Pearson's test of 600 seeds at a level of 10^-6: a right sampler fails one of the three with a probability of
    3 * 10^-6."""
    for settings in (
        {"temperature": 0.9, "min_p": 0.15},
        {"temperature": 1.1, "top_k": 6, "repetition_penalty": 1.2},
        {"temperature": 1.3, "logit_bias": {100: 4.0, 200: 3.0}, "top_p": 0.8},
    ):
        params = [paged.SamplingParams(**settings, max_tokens=1, ignore_eos=True, seed=seed) for seed in range(600)]
        drawn = Counter(c.token_ids[0] for c in llm.generate([PROMPT] * 600, params, use_tqdm=False))
        probabilities = np.exp(log_softmax(cut(penalised(model_logits(PROMPT), PROMPT, [], settings), settings)))
        assert all(probabilities[token] > 0 for token in drawn)
        usual = np.flatnonzero(probabilities * 600 >= 5)
        assert len(usual) >= 5
        counts = np.array([drawn[int(token)] for token in usual] + [600 - sum(drawn[int(t)] for t in usual)])
        means = np.append(probabilities[usual], max(1.0 - probabilities[usual].sum(), 0.0)) * 600
        if means[-1] < 1e-9:
            counts, means = counts[:-1], means[:-1]
        statistic = float(((counts - means) ** 2 / means).sum())
        degrees = torch.tensor((len(means) - 1) / 2.0, dtype=torch.float64)
        assert torch.special.gammaincc(degrees, torch.tensor(statistic / 2.0, dtype=torch.float64)) > 1e-6, settings


def test_what_leaves_no_token_fails_its_request(llm: paged.LLM) -> None:
    params = paged.SamplingParams(
        temperature=0.0, max_tokens=5, min_tokens=2, stop_token_ids=[40], allowed_token_ids=[40], ignore_eos=True
    )
    bad, good = llm.generate([PROMPT, PROMPT], [params, paged.SamplingParams(temperature=0.0)], use_tqdm=False)
    assert bad.finish_reason == "error" and "no token is left to sample" in (bad.error or "")
    assert good.error is None


def test_defaults_come_from_the_models_generation_config(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "min_p": None})
    )
    with open_llm(copy, "cpu") as llm:
        expected = paged.SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)
        assert llm.default_sampling_params == expected
    with open_llm(copy, "cpu", generation_config="none") as llm:
        assert llm.default_sampling_params == paged.SamplingParams()
    (copy / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(ValueError, match="generation_config: temperature must be a number, got 'hot'"):
        open_llm(copy, "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": 1.5}, "min_p must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": 3.0}, "presence_penalty must be in"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be in"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must be in"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of token 1"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"bad_words": [""]}, "bad_words takes non-empty strings"),
        ({"logprobs": -1}, "logprobs must be in"),
        ({"prompt_logprobs_start": 0}, "prompt_logprobs_start must be in"),
        ({"logprobs_mode": "cooked"}, "logprobs_mode must be one of"),
        ({"guide": 3}, "take callables"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        paged.SamplingParams(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"logit_bias": {VOCAB: 1.0}}, {"allowed_token_ids": [VOCAB]}, {"logprobs": VOCAB + 1}, {"bad_words": ["a"]}],
    ids=str,
)
def test_what_this_model_cannot_do_is_refused_at_submit(llm: paged.LLM, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        llm.generate(PROMPT, paged.SamplingParams(**settings))
