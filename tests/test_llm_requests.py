# SPDX-License-Identifier: Apache-2.0
"""What users do with `LLM`: results, streams, mistakes, cancelling, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import paged

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32") as llm:
        yield llm


def test_one_prompt_gives_one_completion_and_many_a_list(llm: paged.LLM) -> None:
    one = llm.generate([5, 6, 7], GREEDY)
    many = llm.generate([[5, 6, 7], [8]], GREEDY, use_tqdm=False)
    assert isinstance(one, paged.Completion)
    assert [c.num_prompt_tokens for c in many] == [3, 1]
    assert many[0].token_ids == one.token_ids
    assert one.finish_reason == "length" and len(one.token_ids) == 20 and one.error is None
    assert 0 < one.timings.first_token_seconds <= one.timings.total_seconds
    assert llm.generate([], GREEDY) == []


def test_a_repeated_prompt_is_served_from_the_cache(llm: paged.LLM) -> None:
    prompt = list(range(3, 103))
    llm.generate(prompt, GREEDY)
    assert llm.generate(prompt, GREEDY).num_cached_tokens == 96  # six full blocks of 16


def test_stream_gives_the_same_tokens_in_pieces(llm: paged.LLM) -> None:
    chunks = list(llm.stream([5, 6, 7], GREEDY))
    assert [t for chunk in chunks for t in chunk.token_ids] == llm.generate([5, 6, 7], GREEDY).token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"


def test_max_tokens_none_goes_to_the_end_of_the_context(llm: paged.LLM) -> None:
    completion = llm.generate([5] * 200, paged.SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True))
    assert len(completion.token_ids) == 56 and completion.finish_reason == "length"


def test_stop_token_ids_end_the_answer(llm: paged.LLM) -> None:
    free = llm.generate([9, 9, 9], GREEDY).token_ids
    params = paged.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, stop_token_ids=[free[4]])
    stopped = llm.generate([9, 9, 9], params)
    assert stopped.token_ids == free[: free.index(free[4]) + 1] and stopped.finish_reason == "stop"
    with_minimum = paged.SamplingParams(
        temperature=0.0, max_tokens=20, ignore_eos=True, stop_token_ids=[free[4]], min_tokens=15
    )
    assert len(llm.generate([9, 9, 9], with_minimum).token_ids) >= 15


def test_closing_a_stream_cancels_and_others_go_on(llm: paged.LLM) -> None:
    long = paged.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    expected = llm.generate([11, 12], long).token_ids
    stream = llm.stream([21, 22], long)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(llm.generate, [11, 12], long)
        stream.close()
        assert other.result().token_ids == expected
    assert list(stream) == []


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        ([], ValueError, "empty"),
        ([1] * 256, ValueError, "256"),
        ([320], ValueError, "320"),
        ([-1], ValueError, "-1"),
        ([1.5], TypeError, "prompt"),
        ("text", ValueError, "tokenizer"),
        (None, TypeError, "prompts"),
        ([[1], "x"], ValueError, "prompt 1 of 2"),
    ],
)
def test_bad_prompts_are_refused_with_what_arrived(
    llm: paged.LLM, prompt: object, error: type[Exception], text: str
) -> None:
    if prompt == []:
        with pytest.raises(error, match=text):
            next(llm.stream([], GREEDY))
        return
    with pytest.raises(error, match=text):
        llm.generate(prompt, GREEDY)  # type: ignore[call-overload]
    assert llm.generate([1], GREEDY).finish_reason == "length"


def test_a_prompt_too_long_for_the_pool_is_refused_with_the_numbers(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32", kv_cache_bytes=2 * 4 * 3 * 2 * 16 * 64) as llm:
        with pytest.raises(ValueError, match=r"100 tokens.*4 blocks of 16"):
            llm.generate([1] * 100, GREEDY)
        assert len(llm.generate([1] * 60, GREEDY).token_ids) == 4


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("dtype", "int8", ValueError),
        ("device", "tpu", ValueError),
        ("device", "cuda:x", ValueError),
        ("num_threads", 0, ValueError),
        ("num_threads", "two", TypeError),
        ("block_size", 24, ValueError),
        ("kv_cache_bytes", 1, ValueError),
        ("max_num_batched_tokens", 8, ValueError),
        ("max_model_len", 10**6, ValueError),
        ("gpu_memory_utilization", 1.5, ValueError),
        ("gpu_memory_utilization", "most", TypeError),
        ("batch_invariant", 1, TypeError),
        ("load_format", "safetensors", ValueError),
        ("enforce_eager", True, TypeError),
    ],
)
def test_bad_options_name_the_option(folder: Path, option: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        paged.LLM(folder, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("max_tokens", 0), ("stop", [""]),
     ("min_tokens", 17)],
)  # fmt: skip
def test_bad_sampling_params_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        paged.SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_repr_says_what_was_chosen(llm: paged.LLM) -> None:
    for part in ("LlamaForCausalLM", "float32", "blocks x 16 tokens", "num_threads=", "max_model_len=256"):
        assert part in repr(llm)


def test_many_threads_share_one_engine(llm: paged.LLM) -> None:
    prompts = [[3 + i, 4 + i, 5 + i] for i in range(24)]
    expected = [c.token_ids for c in llm.generate(prompts, GREEDY, use_tqdm=False)]
    barrier = threading.Barrier(8)

    def work(worker: int) -> list[list[int]]:
        barrier.wait()
        return [llm.generate(prompt, GREEDY).token_ids for prompt in prompts[worker::8]]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert [results[i % 8][i // 8] for i in range(24)] == expected


def test_priority_goes_first(folder: Path) -> None:
    with paged.LLM(folder, dtype="float32", max_num_sequences=1) as llm:
        long = paged.SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        completions = llm.generate([[5], [6], [7], [8]], long, priority=[0, 2, 1, -1], use_tqdm=False)
        ends = [completion.timings.total_seconds for completion in completions]
        assert ends[3] < ends[2] < ends[1]
