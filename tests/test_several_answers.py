# SPDX-License-Identifier: Apache-2.0
"""n answers to one prompt: each is what a request of its own would give, and the prompt is computed once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paged
from backends import open_llm
from paged.guide import Mask
from step_gate import gated_llm
from test_llm_handle import eventually

VOCAB = 320
PROMPT = list(range(3, 75))  # four blocks and a half


def sampled(**settings: Any) -> paged.SamplingParams:
    return paged.SamplingParams(**{"temperature": 1.0, "seed": 5, "max_tokens": 12, "ignore_eos": True, **settings})


def test_each_answer_is_that_of_a_request_with_the_next_seed(llm: paged.LLM) -> None:
    several, one = llm.generate([PROMPT, [7, 8]], [sampled(n=4), sampled()], use_tqdm=False)
    alone = [llm.generate(PROMPT, sampled(seed=5 + index)) for index in range(4)]
    assert [answer.token_ids for answer in several.outputs] == [answer.token_ids for answer in alone]
    assert len({tuple(answer.token_ids) for answer in several.outputs}) == 4
    assert several.token_ids == several.outputs[0].token_ids and one.outputs == [one]


def test_the_prompt_is_computed_once(folder: Path) -> None:
    with open_llm(folder, "cpu") as llm:
        answer = llm.generate(PROMPT, sampled(n=5, prompt_logprobs=0))
        rest = len(PROMPT) % 16
        assert [output.num_cached_tokens for output in answer.outputs] == [0] + [len(PROMPT) - rest] * 4
        assert llm.stats().num_prefill_tokens == len(PROMPT) + 4 * rest
        assert [output.prompt_logprobs is None for output in answer.outputs] == [False] + [True] * 4


def test_seeds_wrap_and_without_one_the_answers_differ(llm: paged.LLM) -> None:
    wrapped = llm.generate(PROMPT, sampled(n=2, seed=2**64 - 1))
    assert wrapped.outputs[1].token_ids == llm.generate(PROMPT, sampled(seed=0)).token_ids
    free = llm.generate(PROMPT, sampled(n=3, seed=None))
    assert len({tuple(output.token_ids) for output in free.outputs}) == 3


def test_logprobs_and_guides_are_each_answers_own(llm: paged.LLM) -> None:
    made: list[object] = []

    class Even:
        def __init__(self) -> None:
            made.append(self)
            self.count = 0

        def next_mask(self, token_ids: list[int]) -> Mask:
            assert len(token_ids) == self.count
            self.count += 1
            return np.full(VOCAB // 32, 0x55555555, np.uint32)  # even ids

    answer = llm.generate(PROMPT, sampled(n=3, guide=Even, logprobs=1))
    assert len(made) == 3
    for index, output in enumerate(answer.outputs):
        assert not any(token % 2 for token in output.token_ids)
        alone = llm.generate(PROMPT, sampled(seed=5 + index, guide=Even, logprobs=1))
        assert output.token_ids == alone.token_ids
        assert output.cumulative_logprob == pytest.approx(alone.cumulative_logprob, abs=1e-3)


def test_streams_and_callbacks_know_the_answer(llm: paged.LLM) -> None:
    expected = [output.token_ids for output in llm.generate(PROMPT, sampled(n=3)).outputs]
    handle = llm.submit(PROMPT, sampled(n=3))
    with pytest.raises(TypeError, match="3 answers come at once"):
        iter(handle)
    for index, output in enumerate(handle.outputs):
        chunks = list(output)
        assert {chunk.index for chunk in chunks} == {index}
        assert [token for chunk in chunks for token in chunk.token_ids] == expected[index]
    seen: dict[int, list[int]] = {}
    done = threading.Event()
    called: list[bool] = []

    def on_chunk(chunk: paged.Chunk) -> None:
        seen.setdefault(chunk.index, []).extend(chunk.token_ids)

    def on_done(handle: paged.Handle) -> None:
        called.append(handle.done())
        done.set()

    handle = llm.submit(PROMPT, sampled(n=3), on_chunk=on_chunk)
    handle.add_done_callback(on_done)
    assert done.wait(60) and called == [True]
    assert [seen[index] for index in range(3)] == expected
    assert [output.token_ids for output in handle.result(1).outputs] == expected


def test_answers_are_awaited_together(llm: paged.LLM) -> None:
    async def together() -> tuple[paged.Completion, paged.Completion]:
        return await paged.AsyncLLM(llm).generate(PROMPT, sampled(n=2)), await llm.submit(PROMPT, sampled(n=2))

    for answer in asyncio.run(together()):
        assert [output.token_ids for output in answer.outputs] == [
            llm.generate(PROMPT, sampled(seed=seed)).token_ids for seed in (5, 6)
        ]


def test_those_that_wait_for_the_prompt_can_be_cancelled_and_outlive_the_first(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate):
        handle = llm.submit(PROMPT, sampled(n=3, max_tokens=4))
        handle.outputs[2].cancel()  # waits for the prompt of the first
        handle.outputs[0].cancel()
        gate.open()
        first, second, third = handle.result(60).outputs
        assert (first.finish_reason, third.finish_reason) == ("cancelled", "cancelled")
        assert third.token_ids == []
        assert second.token_ids == llm.generate(PROMPT, sampled(seed=6, max_tokens=4)).token_ids
    with gated_llm(folder) as (llm, gate):
        handle = llm.submit(PROMPT, sampled(n=3, max_tokens=4))
        closing = threading.Thread(target=llm.close)
        closing.start()
        gate.open()
        closing.join(60)
        assert {output.finish_reason for output in handle.result(60).outputs} <= {"cancelled", "length"}


def test_those_that_wait_for_the_prompt_are_counted_as_waiting(folder: Path) -> None:
    with gated_llm(folder, max_num_batched_tokens=32, max_num_sequences=8) as (llm, gate):
        handle = llm.submit(PROMPT, sampled(n=3, max_tokens=4))
        gate.allow(2)  # of three that compute the prompt; the first may have come before the followers
        assert eventually(lambda: llm.stats().num_running == 1 and llm.stats().num_waiting == 2)
        handle.outputs[1].cancel()
        gate.open()
        handle.result(60)
        assert eventually(lambda: llm.stats().num_running + llm.stats().num_waiting == 0)


def test_a_kept_answer_outlives_its_group(llm: paged.LLM) -> None:
    first, second = llm.submit(PROMPT, sampled(n=2)).outputs
    assert second.result(60).finish_reason == "length" and first.result(60).finish_reason == "length"


def test_a_failed_answer_fails_alone_but_is_told(llm: paged.LLM) -> None:
    numbers = iter(range(2))

    class SecondFails:
        def next_mask(self, token_ids: list[int]) -> None:
            if token_ids == [] and next(numbers, 1) == 1:
                raise RuntimeError("no more")

    answer = llm.generate(PROMPT, sampled(n=2, guide=SecondFails))
    assert sorted(output.finish_reason for output in answer.outputs) == ["error", "length"]
    with pytest.raises(paged.RequestError, match="no more"):
        numbers = iter(range(2))
        llm.submit(PROMPT, sampled(n=2, guide=SecondFails)).result(60)


def test_greedy_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="n must be 1 with temperature=0"):
        paged.SamplingParams(n=2, temperature=0.0)
    with pytest.raises(ValueError, match="n must be in"):
        paged.SamplingParams(n=0)
