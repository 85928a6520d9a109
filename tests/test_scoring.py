# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of continuations and beam search, against their definitions on transformers' logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paged
from backends import open_llm
from paged import BeamSearchParams, beam_search
from paged.scoring import shared_beginnings
from sampling_definition import VOCAB, log_softmax, model_logits
from test_structured_llm import save_with_tokenizer
from tiny_models import tiny_model

Pair = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer(tmp_path_factory.mktemp("llama"))


def random_tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(3, VOCAB, count).tolist()


def expected_score(prompt: list[int], continuation: list[int]) -> tuple[list[float], bool]:
    logits = tiny_model("llama").logits(prompt + continuation).double().numpy()[len(prompt) - 1 : -1]
    logprobs = [float(log_softmax(row)[token]) for row, token in zip(logits, continuation, strict=True)]
    return logprobs, all(int(row.argmax()) == token for row, token in zip(logits, continuation, strict=True))


def test_scores_are_those_of_the_model(llm: paged.LLM) -> None:
    rng = np.random.default_rng(0)
    prompt = random_tokens(rng, 50)
    greedy = llm.generate(prompt, paged.SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)).token_ids
    pairs: list[Pair] = [
        (prompt, greedy),
        (prompt, [*greedy[:-1], (greedy[-1] + 1) % VOCAB]),
        (prompt, greedy[:1]),
        (prompt, random_tokens(rng, 30)),
        (prompt[:1], random_tokens(rng, 1)),
        (random_tokens(rng, 7), random_tokens(rng, 100)),
        (prompt, greedy),  # asked twice
        (random_tokens(rng, 1), random_tokens(rng, llm.max_model_len - 1)),  # as long as can be
    ]
    for (prompt, continuation), found in zip(pairs, llm.score(pairs, use_tqdm=False), strict=True):
        logprobs, is_greedy = expected_score(prompt, continuation)
        assert found.token_ids == continuation and found.is_greedy == is_greedy
        np.testing.assert_allclose(found.logprobs, logprobs, atol=5e-4)
        assert found.logprob == pytest.approx(math.fsum(logprobs), abs=5e-4 * len(logprobs))
    assert llm.score([]) == []


def test_shared_beginnings_are_computed_once(folder: Path) -> None:
    """Eight shots, then one of six documents, then one of four choices: in any order."""
    rng = np.random.default_rng(1)
    shots = random_tokens(rng, 96)
    documents = [random_tokens(rng, 48) for _ in range(6)]
    pairs: list[Pair] = [(shots + document, random_tokens(rng, 3)) for document in documents for _ in range(4)]
    order = rng.permutation(len(pairs)).tolist()
    with open_llm(folder, "cpu") as llm:
        found = llm.score([pairs[index] for index in order], use_tqdm=False)
        # What is new, and of each pair the block that is not full.
        assert llm.stats().num_prefill_tokens <= 96 + 6 * 48 + len(pairs) * (16 + 2)
    for index, score in zip(order, found, strict=True):
        np.testing.assert_allclose(score.logprobs, expected_score(*pairs[index])[0], atol=5e-4)


def test_a_leader_shares_most_and_comes_before() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        sequences = sorted(
            [0] * int(rng.integers(0, 90)) + rng.integers(0, 2, int(rng.integers(0, 60))).tolist() for _ in range(12)
        )

        def shared(a: list[int], b: list[int]) -> int:
            return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

        for index, leader in enumerate(shared_beginnings(sequences)):
            most = max((shared(sequences[other], sequences[index]) for other in range(index)), default=0)
            if most < 32:
                assert leader is None
            else:
                first = next(i for i in range(index) if shared(sequences[i], sequences[index]) == most)
                assert leader == first


def test_a_string_continues_the_tokens_of_the_whole_text(llm: paged.LLM) -> None:
    encode = llm.tokenizer.encode
    whole, start = encode("the cat and the hat"), encode("the cat")
    both, mixed = llm.score([("the cat", " and the hat"), (start, " and")], use_tqdm=False)
    assert whole[: len(start)] == start
    assert both.token_ids == whole[len(start) :]
    assert mixed.token_ids == encode(" and", add_special_tokens=False)
    np.testing.assert_allclose(both.logprobs, expected_score(start, both.token_ids)[0], atol=5e-4)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([([1], [])], ValueError, "pair 0: .* at least one token each, got 1 and 0"),
        ([([1], [2]), ([], [1])], ValueError, "pair 1: .* got 0 and 1"),
        ([([1], [2]), ([1], [320])], ValueError, "pair 1 of 2"),
        ([([1] * 200, [2] * 100)], ValueError, "pair 0 of 1: .*256"),
        ([[1, 2]], TypeError, "a prompt is a string or a list"),
        (["ab"], TypeError, "pair 0: expected a prompt and its continuation"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    llm: paged.LLM, pairs: list[Pair], error: type[Exception], message: str
) -> None:
    with pytest.raises((error, ValueError), match=message):
        llm.score(pairs, use_tqdm=False)
    assert llm.score([([1], [2])], use_tqdm=False)[0].token_ids == [2]


def naive_beams(
    prompt: list[int], width: int, max_tokens: int, ends: set[int], length_penalty: float
) -> list[tuple[list[int], float]]:
    """Every beam goes on to the very end. Ends count among the likeliest tokens, and all others over the vocabulary."""
    num_likely = width + max(width, len(ends))
    running: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for _ in range(max_tokens):
        longer = []
        for tokens, total in running:
            logprobs = log_softmax(model_logits(prompt + tokens))
            likely = set(np.argsort(-logprobs, kind="stable")[:num_likely].tolist())
            for token, logprob in enumerate(logprobs.tolist()):
                if token not in ends:
                    longer.append(([*tokens, token], total + logprob))
                elif token in likely:
                    finished.append(([*tokens, token], total + logprob))
        running = sorted(longer, key=lambda beam: -beam[1])[:width]
    finished += running
    return sorted(finished, key=lambda beam: -(beam[1] / len(beam[0]) ** length_penalty))[:width]


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
def test_beams_are_those_of_the_definition(llm: paged.LLM, length_penalty: float) -> None:
    prompts = [[5, 6, 7], list(range(3, 40))]
    # Ends that are likely, so that beams do end.
    ends = {int(token) for prompt in prompts for token in np.argsort(-model_logits(prompt))[[3, 9, 20, 40]]}
    before, llm._end_token_ids = llm._end_token_ids, frozenset(ends)
    try:
        found = beam_search(llm, prompts, BeamSearchParams(3, max_tokens=5, length_penalty=length_penalty))
    finally:
        llm._end_token_ids = before
    for prompt, beams in zip(prompts, found, strict=True):
        expected = naive_beams(prompt, 3, 5, ends, length_penalty)
        assert [beam.token_ids for beam in beams] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([beam.logprob for beam in beams], [total for _, total in expected], atol=2e-3)
        assert [beam.finish_reason for beam in beams] == [
            "stop" if tokens[-1] in ends else "length" for tokens, _ in expected
        ]


def test_a_beam_as_wide_as_the_vocabulary_finds_the_likeliest_answer(folder: Path) -> None:
    """Over all 320 * 320 answers of two tokens; 160 beams suffice, for the first token of the best is among them."""
    with open_llm(folder, "cpu") as llm:
        best = beam_search(llm, [[9, 8]], BeamSearchParams(160, max_tokens=2, ignore_eos=True))[0][0]
        greedy = beam_search(llm, [[9, 8]], BeamSearchParams(1, max_tokens=6, ignore_eos=True))[0]
        answer = llm.generate([9, 8], paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    first = log_softmax(model_logits([9, 8]))
    second = np.stack([log_softmax(model_logits([9, 8, token])) for token in range(VOCAB)])
    joint = first[:, None] + second
    assert tuple(best.token_ids) == np.unravel_index(int(joint.argmax()), joint.shape)
    assert best.logprob == pytest.approx(float(joint.max()), abs=1e-3)
    assert [beam.token_ids for beam in greedy] == [answer.token_ids] and greedy[0].text == answer.text


def test_beams_stop_at_the_end_of_the_context(folder: Path) -> None:
    with open_llm(folder, "cpu", max_model_len=20) as llm:
        (beams,) = beam_search(llm, [[5] * 15], BeamSearchParams(2, max_tokens=50, ignore_eos=True))
        assert [len(beam.token_ids) for beam in beams] == [5, 5]
        assert {beam.finish_reason for beam in beams} == {"length"}
        with pytest.raises(ValueError, match="20"):
            beam_search(llm, [[5] * 20], BeamSearchParams(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_width": 0}, "beam_width must be in"),
        ({"beam_width": 2, "max_tokens": 0}, "max_tokens must be in"),
        ({"beam_width": 2, "length_penalty": 11}, "length_penalty must be in"),
        ({"beam_width": True}, "beam_width must be an integer"),
    ],
)
def test_wrong_beam_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        BeamSearchParams(**settings)
