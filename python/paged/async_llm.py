# SPDX-License-Identifier: Apache-2.0
"""`AsyncLLM`: an `LLM` for code that runs in an event loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from paged.async_session import AsyncSession, in_thread
from paged.handle import Handle
from paged.llm import LLM, Messages, Prompt, TokenIds, Tools
from paged.outputs import Completion
from paged.prefix import Prefix
from paged.sampling import SamplingParams
from paged.scoring import Score, score_of, submit_pairs
from paged.waiting import wait_all_async


class AsyncLLM:
    """The coroutines and asynchronous iterators of an `LLM`, for any number of running event loops.

    No process, no event loop of its own: awaiting costs one thread for all requests, which wakes the loops. Cancelling
    a task cancels its requests.

    >>> async with await paged.AsyncLLM.open("smollm2-135m") as llm:
    ...     async for chunk in llm.stream("Once upon a time"):
    ...         print(chunk.text, end="")

    Args:
        llm: the engine, of which it is a view: `llm` may be used besides, and closing either closes both.
    """

    def __init__(self, llm: LLM) -> None:
        if not isinstance(llm, LLM):
            raise TypeError(f"AsyncLLM takes an LLM, got {type(llm).__name__}; AsyncLLM.open() takes a model")
        self.llm = llm

    @classmethod
    async def open(cls, model: str | Path, **options: Any) -> AsyncLLM:
        """Loads a model without blocking the event loop. The options are those of `LLM`."""
        import asyncio

        return cls(await asyncio.to_thread(LLM, model, **options))

    @overload
    async def generate(  # type: ignore[overload-overlap]  # a string is a Sequence[str], and comes first
        self, prompts: str | TokenIds, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Completion: ...
    @overload
    async def generate(
        self, prompts: Sequence[str] | Sequence[TokenIds],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        priority: int | Sequence[int] = 0,
    ) -> list[Completion]: ...  # fmt: skip
    async def generate(
        self,
        prompts: str | TokenIds | Sequence[str] | Sequence[TokenIds],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
    ) -> Completion | list[Completion]:
        """As `LLM.generate`."""
        handles, is_single = self.llm._submit_all(prompts, sampling_params, priority)
        await wait_all_async(handles)
        completions = [handle._completion() for handle in handles]
        return completions[0] if is_single else completions

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0) -> Handle:
        """Submits; iterate over it with `async for`, or await it."""
        return self.llm.submit(prompt, sampling_params, priority=priority)

    @overload
    async def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[False] = False,
    ) -> Completion: ...  # fmt: skip
    @overload
    async def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[True],
    ) -> Handle: ...  # fmt: skip
    async def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        stream: bool = False,
    ) -> Completion | Handle:
        """As `LLM.chat`; `async for chunk in await llm.chat(messages, stream=True)`."""
        handle = self.llm._submit_chat(messages, sampling_params, tools)
        if stream:
            return handle
        await wait_all_async([handle])
        return handle._completion()

    async def score(self, pairs: Sequence[tuple[Prompt, Prompt]], *, priority: int = 0) -> list[Score]:
        """As `LLM.score`."""
        submitted = submit_pairs(self.llm, pairs, priority)
        await wait_all_async([handle for handle, _ in submitted])
        return [score_of(handle, continuation) for handle, continuation in submitted]

    async def session(
        self, *, parent: AsyncSession | Prefix | None = None, tenant: str | None = None, weight: float | None = None
    ) -> AsyncSession:  # fmt: skip
        """As `LLM.session`; `async with await llm.session() as session`."""
        source = parent.session if isinstance(parent, AsyncSession) else parent
        return AsyncSession(
            await in_thread(functools.partial(self.llm.session, parent=source, tenant=tenant, weight=weight))
        )

    async def load_session(
        self, path: str | Path, *, tenant: str | None = None, weight: float = 1.0
    ) -> AsyncSession:  # fmt: skip
        """As `LLM.load_session`."""
        return AsyncSession(
            await in_thread(functools.partial(self.llm.load_session, path, tenant=tenant, weight=weight))
        )

    async def prefix(self, prompt: Prompt, *, tenant: str = "", weight: float = 1.0) -> Prefix:
        """As `LLM.prefix`."""
        return await in_thread(functools.partial(self.llm.prefix, prompt, tenant=tenant, weight=weight))

    async def close(self) -> None:
        """As `LLM.close`, without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self.llm!r}"
