# SPDX-License-Identifier: Apache-2.0
"""What a type checker makes of the public names: mypy checks this file, nothing runs it.

A line whose error is ignored must be an error: a strict mypy reports an ignore that is not needed.
"""

from typing import assert_type

from paged import LLM, AsyncLLM, Chunk, Completion, Handle, SamplingParams, Stats
from paged.outputs import FinishReason


def blocking(llm: LLM, params: SamplingParams) -> None:
    assert_type(llm.generate("a"), Completion)
    assert_type(llm.generate([1, 2], params), Completion)
    assert_type(llm.generate(["a", "b"], [params, params]), list[Completion])
    assert_type(llm.generate([[1, 2], [3]], params, priority=[0, 1]), list[Completion])
    assert_type(llm.chat([{"role": "user", "content": "a"}]), Completion)
    assert_type(llm.chat([{"role": "user", "content": "a"}], stream=True), Handle)
    assert_type(llm.submit("a", on_chunk=print).result(timeout=1), Completion)
    assert_type(llm.stats(), Stats)
    with LLM("a") as opened, opened.stream("a") as handle:
        for chunk in handle:
            assert_type(chunk, Chunk)
            assert_type(chunk.finish_reason, FinishReason | None)


async def asynchronous(params: SamplingParams) -> None:
    async with await AsyncLLM.open("a") as llm:
        assert_type(await llm.generate("a", params), Completion)
        assert_type(await llm.generate(["a"], params), list[Completion])
        assert_type(await llm.stream("a"), Completion)
        async for chunk in await llm.chat([{"role": "user", "content": "a"}], stream=True):
            assert_type(chunk, Chunk)


def mistakes(llm: LLM, params: SamplingParams) -> None:
    llm.generate(3)  # type: ignore[call-overload]
    llm.submit("a", prioritty=1)  # type: ignore[call-arg]
    SamplingParams(temperature="hot")  # type: ignore[arg-type]
    params.seed = 1  # type: ignore[misc]
    LLM("a", dtype="float8")  # type: ignore[arg-type]
