# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of tokens and prompts, on every backend, against their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import paged
from backends import DEVICES, GPU, open_llm
from sampling_definition import PROMPT, VOCAB, cut, log_softmax, model_logits, penalised, run, values
from tiny_models import tiny_model


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 1.6, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.4, "top_k": 30, "top_p": 0.7, "min_p": 0.01},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.4, "logit_bias": {9: 3.0}},
    ],
    ids=str,
)
def test_processed_logprobs_are_those_of_what_is_drawn_from(llm: paged.LLM, settings: dict[str, Any]) -> None:
    completion = run(llm, **settings, seed=1, logprobs=VOCAB, logprobs_mode="processed_logprobs", max_tokens=4)
    assert completion.logprobs is not None
    for position, of_token in enumerate(completion.logprobs):
        before = completion.token_ids[:position]
        logits = penalised(model_logits(PROMPT + before), PROMPT, before, settings)
        expected = log_softmax(cut(logits, settings))
        found = values(of_token)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.isfinite(found[completion.token_ids[position]])


def test_raw_logprobs_know_nothing_of_the_settings(llm: paged.LLM) -> None:
    settings: dict[str, Any] = {
        "temperature": 0.6, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.5, "logit_bias": {9: 20.0}, "seed": 4
    }  # fmt: skip
    for mode in ("raw_logprobs", "raw_logits"):
        completion = run(llm, **settings, logprobs=VOCAB, logprobs_mode=mode, max_tokens=3)
        assert completion.logprobs is not None
        for position, of_token in enumerate(completion.logprobs):
            logits = model_logits(PROMPT + completion.token_ids[:position])
            expected = logits if mode == "raw_logits" else log_softmax(logits)
            np.testing.assert_allclose(values(of_token), expected, atol=3e-4)


def test_logprobs_are_of_the_token_and_of_the_most_likely(llm: paged.LLM) -> None:
    completion = run(llm, temperature=1.5, seed=8, logprobs=5, max_tokens=20)
    assert completion.logprobs is not None
    for position, of_token in enumerate(completion.logprobs):
        token = completion.token_ids[position]
        exact = log_softmax(model_logits(PROMPT + completion.token_ids[:position]))
        order = np.argsort(-exact, kind="stable")
        assert set(of_token) == {token, *order[:5].tolist()}
        assert next(iter(of_token)) == token
        for other, logprob in of_token.items():
            assert logprob.rank == int((exact >= exact[other]).sum())
            assert logprob.logprob == pytest.approx(exact[other], abs=3e-4)
    expected = sum(of_token[t].logprob for t, of_token in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(expected)


def test_logprobs_change_no_token_and_do_not_depend_on_company(llm: paged.LLM) -> None:
    prompts = [[5, 6], [7], list(range(3, 60)), [8, 9, 10]]
    params = [
        paged.SamplingParams(
            temperature=0.9, seed=index, max_tokens=10, ignore_eos=True, top_p=0.9, repetition_penalty=1.0 + index / 5
        )
        for index in range(4)
    ]
    asking = [
        paged.SamplingParams(
            temperature=0.9, seed=index, max_tokens=10, ignore_eos=True, top_p=0.9, repetition_penalty=1.0 + index / 5,
            logprobs=index,
        )
        for index in range(4)
    ]  # fmt: skip
    plain = llm.generate(prompts, params, use_tqdm=False)
    together = llm.generate(prompts, asking, use_tqdm=False)
    alone = [llm.generate(prompt, own) for prompt, own in zip(prompts, asking, strict=True)]
    assert [c.token_ids for c in plain] == [c.token_ids for c in together] == [c.token_ids for c in alone]
    if "device='cpu'" in repr(llm):
        assert [c.logprobs for c in together] == [c.logprobs for c in alone]


@pytest.mark.parametrize("length", [1, 2, 17, 100, 200])
def test_prompt_logprobs_are_those_of_the_whole_prompt(llm: paged.LLM, length: int) -> None:
    prompt = np.random.default_rng(length).integers(3, VOCAB, length).tolist()
    exact = tiny_model("llama").logits(prompt).double().numpy()
    for _ in range(2):  # the second time the prompt is in the prefix cache
        completion = run(llm, prompt, prompt_logprobs=3, max_tokens=2)
        assert completion.prompt_logprobs is not None and len(completion.prompt_logprobs) == length
        assert completion.prompt_logprobs[0] is None
        for position, of_token in enumerate(completion.prompt_logprobs[1:], 1):
            assert of_token is not None
            logprobs = log_softmax(exact[position - 1])
            top = np.argsort(-logprobs, kind="stable")[:3].tolist()
            assert set(of_token) == {prompt[position], *top}
            for token, found in of_token.items():
                assert found.logprob == pytest.approx(logprobs[token], abs=5e-4)
    assert completion.token_ids == run(llm, prompt, max_tokens=2).token_ids


def test_prompt_logprobs_of_an_end_take_the_rest_from_the_cache(folder: Path) -> None:
    prompt = np.random.default_rng(0).integers(3, VOCAB, 120).tolist()
    with open_llm(folder, "cpu") as llm:
        whole = run(llm, prompt, prompt_logprobs=0, max_tokens=1)
        end = run(llm, prompt, prompt_logprobs=0, prompt_logprobs_start=100, max_tokens=1)
    assert whole.prompt_logprobs is not None and end.prompt_logprobs is not None
    assert whole.num_cached_tokens == 0 and end.num_cached_tokens == 96
    assert end.prompt_logprobs[:100] == [None] * 100
    assert end.prompt_logprobs[100:] == whole.prompt_logprobs[100:]


@pytest.mark.parametrize("device", DEVICES)
def test_prompt_logprobs_survive_chunks_company_and_preemption(folder: Path, device: str) -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, VOCAB, size).tolist() for size in (90, 5, 60, 33, 70, 1, 48, 80)]
    params = [
        paged.SamplingParams(
            temperature=0.0, max_tokens=20, ignore_eos=True, prompt_logprobs=1 if index % 3 else None, logprobs=1
        )
        for index in range(len(prompts))
    ]

    def everything(llm: paged.LLM) -> list[Any]:
        completions = llm.generate(prompts, params, use_tqdm=False)
        assert [c.error for c in completions] == [None] * len(prompts)
        return [(c.token_ids, c.logprobs, c.prompt_logprobs) for c in completions]

    # Where rows of a matrix product have the same bits in every batch, so has everything here.
    invariant = {"batch_invariant": True} if device == GPU else {}
    with open_llm(folder, device, enable_prefix_caching=False, **invariant) as llm:
        expected = everything(llm)
    for options in (
        {"max_num_sequences": 4, "max_num_batched_tokens": 16},
        {"max_num_sequences": 3, "max_num_batched_tokens": 512},
        {"block_size": 4, "kv_cache_bytes": 40 * 4 * 768},
        {"max_num_sequences": 1},
    ):
        with open_llm(folder, device, **options, **invariant) as llm:
            found = everything(llm)
            assert device == "torch" or found == expected, options
            assert [tokens for tokens, *_ in found] == [tokens for tokens, *_ in expected]
            assert llm.stats().num_preemptions > 0 or "block_size" not in options


def test_chunks_bring_the_logprobs_of_their_tokens(llm: paged.LLM) -> None:
    params = paged.SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=2)
    handle = llm.stream(PROMPT, params)
    chunks = list(handle)
    completion = handle.result()
    assert all(chunk.logprobs is not None and len(chunk.logprobs) == len(chunk.token_ids) for chunk in chunks)
    assert [of_token for chunk in chunks for of_token in chunk.logprobs or []] == completion.logprobs
    assert next(iter(llm.stream(PROMPT, paged.SamplingParams(temperature=0.0)))).logprobs is None


def test_logprobs_of_a_logits_processor_and_of_a_guide(llm: paged.LLM) -> None:
    """The model's own under "raw", what the token is drawn from under "processed"."""
    allowed = list(range(1, VOCAB, 7))

    class OnlySome:
        def next_mask(self, token_ids: list[int]) -> npt.NDArray[np.uint32]:
            mask = np.zeros(VOCAB // 32, np.uint32)
            for token in allowed:
                mask[token // 32] |= np.uint32(1 << token % 32)
            return mask

    forbidden = np.ones(VOCAB, bool)
    forbidden[allowed] = False
    for extras in ({"guide": OnlySome}, {"guide": OnlySome, "logits_processors": [lambda _, logits: logits * 2]}):
        for mode in ("raw_logprobs", "processed_logprobs"):
            completion = run(llm, **extras, temperature=0.8, seed=2, max_tokens=4, logprobs=VOCAB, logprobs_mode=mode)
            assert completion.logprobs is not None and len(completion.logprobs) == 4
            for position, of_token in enumerate(completion.logprobs):
                expected = model_logits(PROMPT + completion.token_ids[:position])
                if mode == "processed_logprobs":
                    expected = expected * len(extras) / 0.8
                    expected[forbidden] = -np.inf
                np.testing.assert_allclose(values(of_token), log_softmax(expected), atol=1e-3)


def test_an_answer_that_ends_early_has_logprobs_of_its_tokens(llm: paged.LLM) -> None:
    free = run(llm, max_tokens=12, logprobs=0)
    stopped = run(llm, max_tokens=12, logprobs=0, stop_token_ids=[free.token_ids[5]])
    first = free.token_ids.index(free.token_ids[5])
    assert stopped.token_ids == free.token_ids[: first + 1] and stopped.logprobs is not None
    assert len(stopped.logprobs) == first + 1
    handle = llm.submit(PROMPT, paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True, logprobs=1))
    next(handle)
    handle.cancel()
    completion = handle.result()
    assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
