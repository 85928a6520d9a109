# SPDX-License-Identifier: Apache-2.0
"""Guides and logits processors: what they say holds, on every backend, and nobody but their request waits for them."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paged
from backends import DEVICES, open_llm
from paged.guide import STOP, Mask, Stop
from tiny_models import tiny_model

VOCAB = 320
WORDS = VOCAB // 32
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
PROMPTS = [[5, 6, 7], [8], list(range(3, 70)), [9, 10]]


def mask_of(tokens: list[int]) -> Mask:
    mask = np.zeros(WORDS, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


class OnlyMultiples:
    """Allows multiples of `step`, other ones for each length of the answer."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[list[int]] = []

    def allowed(self, length: int) -> list[int]:
        return list(range(length % 3, VOCAB, self.step))

    def next_mask(self, token_ids: list[int]) -> Mask | None:
        self.seen.append(list(token_ids))
        return mask_of(self.allowed(len(token_ids)))


class Blocked:
    """Answers only once it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def next_mask(self, token_ids: list[int]) -> Mask | None:
        self.asked.set()
        assert self.go_on.wait(60)
        return None


def guide_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "paged-guide"}


def run(llm: paged.LLM, prompt: list[int], **settings: Any) -> paged.Completion:
    return llm.generate(prompt, paged.SamplingParams(**{**GREEDY, **settings}))


def test_masks_hold_at_every_token_and_the_guide_sees_each_prefix_once(llm: paged.LLM) -> None:
    guides = [OnlyMultiples(step) for step in (2, 3, 5, 7)]
    params = [paged.SamplingParams(**GREEDY, guide=lambda guide=guide: guide) for guide in guides]
    for guide, completion in zip(guides, llm.generate(PROMPTS, params, use_tqdm=False), strict=True):
        tokens = completion.token_ids
        assert len(tokens) == 12 and completion.finish_reason == "length"
        assert all(token in guide.allowed(position) for position, token in enumerate(tokens))
        assert guide.seen == [tokens[:length] for length in range(12)]


def test_a_mask_that_allows_everything_or_none_changes_nothing(llm: paged.LLM) -> None:
    class Everything:
        def next_mask(self, token_ids: list[int]) -> Mask | None:
            return np.full(WORDS, 2**32 - 1, np.uint32) if len(token_ids) % 2 else None

    for settings in ({}, {"temperature": 0.9, "seed": 3}):
        assert run(llm, [5, 6], guide=Everything, **settings).token_ids == run(llm, [5, 6], **settings).token_ids


def test_the_greedy_choice_is_the_best_allowed_token(llm: paged.LLM) -> None:
    first = tiny_model("llama").logits([5, 6, 7])[-1].numpy()
    guide = OnlyMultiples(2)
    allowed = guide.allowed(0)
    token = run(llm, [5, 6, 7], guide=lambda: guide, max_tokens=1).token_ids[0]
    assert token == allowed[int(np.argmax(first[allowed]))]


def test_a_guide_may_stop(llm: paged.LLM) -> None:
    class After:
        def next_mask(self, token_ids: list[int]) -> Mask | Stop | None:
            return STOP if len(token_ids) == 4 else None

    completion = run(llm, [5, 6], guide=After)
    assert completion.token_ids == run(llm, [5, 6]).token_ids[:4] and completion.finish_reason == "stop"


def failing(raised: BaseException) -> Callable[[], Any]:
    class Fails:
        def next_mask(self, token_ids: list[int]) -> Mask | None:
            if len(token_ids) == 2:
                raise raised
            return None

    return Fails


def of_shape(*shape: int) -> Callable[[], Any]:
    class Wrong:
        def next_mask(self, token_ids: list[int]) -> Mask | None:
            return np.zeros(shape, np.uint32)

    return Wrong


def no_guide() -> Any:
    raise ValueError("no such grammar")


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (failing(KeyError("state")), "KeyError: 'state'"),
        (failing(SystemExit("leave")), "SystemExit: leave"),
        (no_guide, "ValueError: no such grammar"),
        (of_shape(WORDS + 1), f"has {WORDS} words of 32 bits, got {WORDS + 1}"),
        (of_shape(2, 5), "a mask has one dimension, got 2"),
        (of_shape(WORDS), "no token is left to sample"),
        (lambda: object(), "AttributeError"),
    ],
)
def test_a_broken_guide_fails_its_request_alone(llm: paged.LLM, guide: Any, message: str) -> None:
    params = [paged.SamplingParams(**GREEDY), paged.SamplingParams(**GREEDY, guide=guide)]
    good, bad = llm.generate([[5, 6], [5, 6]], params, use_tqdm=False)
    assert bad.finish_reason == "error" and message in (bad.error or "")
    assert good.token_ids == run(llm, [5, 6]).token_ids


def test_nobody_waits_for_a_guide_that_does_not_answer(llm: paged.LLM) -> None:
    dead = [Blocked() for _ in range(3)]
    streams = [llm.stream([7, 8], paged.SamplingParams(**GREEDY, guide=lambda guide=guide: guide)) for guide in dead]
    assert all(guide.asked.wait(60) for guide in dead)
    guide = OnlyMultiples(2)
    assert run(llm, [5, 6, 7], guide=lambda: guide).finish_reason == "length"  # nor other guided ones
    assert len(run(llm, [5, 6, 7]).token_ids) == 12
    streams[0].close()  # cancels it while it is held
    for guide in dead:
        guide.go_on.set()
    assert [token for chunk in streams[1] for token in chunk.token_ids] == run(llm, [7, 8]).token_ids
    streams[2].close()


@pytest.mark.parametrize("device", DEVICES)
def test_close_ends_a_held_request_and_the_threads(folder: Path, device: str) -> None:
    before = guide_threads()
    dead = Blocked()
    llm = open_llm(folder, device)
    stream = llm.stream([7, 8], paged.SamplingParams(**GREEDY, guide=lambda: dead))
    assert dead.asked.wait(60)
    llm.close()
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    dead.go_on.set()
    for thread in guide_threads() - before:
        thread.join(10)
        assert not thread.is_alive()


def test_a_dropped_engine_closes_though_its_threads_stand(folder: Path) -> None:
    before = guide_threads()
    llm = open_llm(folder, "cpu")
    run(llm, [5], guide=lambda: OnlyMultiples(3))
    threads = guide_threads() - before
    assert threads
    del llm
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_guided_requests_survive_preemption_and_company(folder: Path) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 60))] for _ in range(12)]

    def everything(llm: paged.LLM) -> list[list[int]]:
        params = [
            paged.SamplingParams(
                temperature=0.8, seed=index, max_tokens=20, ignore_eos=True,
                guide=(lambda: OnlyMultiples(2)) if index % 3 else None,
                logits_processors=[lambda token_ids, logits: -logits] if index % 4 == 0 else (),
            )
            for index in range(len(prompts))
        ]  # fmt: skip
        return [completion.token_ids for completion in llm.generate(prompts, params, use_tqdm=False)]

    with open_llm(folder, "cpu") as llm:
        expected = everything(llm)
    for options in (
        {"block_size": 4, "kv_cache_bytes": 30 * 4 * 768},
        {"max_num_batched_tokens": 16, "max_num_sequences": 8},
    ):
        with open_llm(folder, "cpu", **options) as llm:
            assert everything(llm) == expected
            assert llm.stats().num_preemptions > 0 or "block_size" not in options


def test_a_logits_processor_decides(llm: paged.LLM) -> None:
    seen: list[tuple[list[int], np.ndarray]] = []

    def last_is_best(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append((list(token_ids), logits.copy()))
        out = np.full_like(logits, -5.0)
        out[7 * len(token_ids)] = 9.0
        return out

    completion = run(llm, [5, 6, 7], logits_processors=[last_is_best])
    assert completion.token_ids == [7 * position for position in range(12)]
    assert [tokens for tokens, _ in seen] == [completion.token_ids[:length] for length in range(12)]
    model = tiny_model("llama")
    for tokens, logits in seen[:4]:
        np.testing.assert_allclose(logits, model.logits([5, 6, 7, *tokens])[-1].numpy(), atol=2e-4)


def test_an_idle_processor_leaves_sampled_tokens_as_they_are(llm: paged.LLM) -> None:
    for settings in ({"temperature": 0.8, "seed": 4}, {"temperature": 1.0, "top_k": 9, "top_p": 0.8, "seed": 5}):
        expected = run(llm, [5, 6, 7], **settings)
        found = run(llm, [5, 6, 7], **settings, logits_processors=[lambda token_ids, logits: logits])
        assert found.token_ids == expected.token_ids


def test_processors_run_in_turn_and_under_the_mask_of_a_guide(llm: paged.LLM) -> None:
    guide = OnlyMultiples(2)
    tokens = run(
        llm, [5], guide=lambda: guide,
        logits_processors=[lambda token_ids, logits: -logits, lambda token_ids, logits: logits * 2],
    ).token_ids  # fmt: skip
    assert all(token in guide.allowed(position) for position, token in enumerate(tokens))
    logits = -tiny_model("llama").logits([5])[-1].numpy()
    assert tokens[0] == guide.allowed(0)[int(np.argmax(logits[guide.allowed(0)]))]


@pytest.mark.parametrize("result", [np.zeros(5, np.float32), "text", np.full(VOCAB, np.nan, np.float32)])
def test_a_broken_processor_fails_its_request_alone(llm: paged.LLM, result: Any) -> None:
    params = [paged.SamplingParams(**GREEDY), paged.SamplingParams(**GREEDY, logits_processors=[lambda *_: result])]
    good, bad = llm.generate([[5, 6], [5, 6]], params, use_tqdm=False)
    assert bad.finish_reason == "error" and bad.error
    assert good.finish_reason == "length"
