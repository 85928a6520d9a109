# SPDX-License-Identifier: Apache-2.0
"""`AsyncSession`: a `Session` for code that runs in an event loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from paged.handle import Handle
from paged.receipts import Explanation, Receipt
from paged.session import Expectation, Prompt, Session
from paged.session_chat import Message

if TYPE_CHECKING:
    import asyncio

    from paged.outputs import Completion
    from paged.sampling import SamplingParams

Result = TypeVar("Result")


class AsyncSession:
    """The coroutines of a `Session`. Made by `AsyncLLM.session`.

    A command waits for the engine to be between two steps; here a thread of the loop's executor does that, and the loop
    goes on. Cancelling a task cancels its turn, of which the session keeps what had come.

    >>> async with await llm.session() as session:
    ...     answer = await session.generate("...")
    ...     await session.pause("shell")
    ...     async for chunk in await session.stream("..."):
    ...         print(chunk.text, end="")

    Args:
        session: of which it is a view.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Completion:
        """As `Session.generate`."""
        return await (await self.stream(prompt, sampling_params, priority=priority))

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Handle:
        """As `Session.stream`; `async for chunk in await session.stream(...)`."""
        return await in_thread(functools.partial(self.session.stream, prompt, sampling_params, priority=priority))

    @overload
    async def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, *,
        tools: Sequence[Message] | None = None, stream: Literal[False] = False,
    ) -> Completion: ...  # fmt: skip
    @overload
    async def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, *,
        tools: Sequence[Message] | None = None, stream: Literal[True],
    ) -> Handle: ...  # fmt: skip
    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
    ) -> Completion | Handle:
        """As `Session.chat`; `async for chunk in await session.chat(messages, stream=True)`."""
        handle = await in_thread(functools.partial(self.session._submit_chat, messages, sampling_params, tools))
        return handle if stream else await handle

    async def append(self, prompt: Prompt) -> Handle:
        """As `Session.append`."""
        return await in_thread(functools.partial(self.session.append, prompt))

    async def edit(self, span: tuple[int, int], prompt: Prompt) -> Receipt:
        """As `Session.edit`."""
        return await in_thread(functools.partial(self.session.edit, span, prompt))

    async def fork(self) -> AsyncSession:
        """As `Session.fork`."""
        return AsyncSession(await in_thread(self.session.fork))

    async def pause(self, tool: str = "", expect: Expectation | None = None) -> Receipt:
        """As `Session.pause`."""
        return await in_thread(functools.partial(self.session.pause, tool, expect))

    async def progress(self, share: float) -> Receipt:
        """As `Session.progress`."""
        return await in_thread(functools.partial(self.session.progress, share))

    async def eta(self, seconds: float) -> Receipt:
        """As `Session.eta`."""
        return await in_thread(functools.partial(self.session.eta, seconds))

    async def rewind(self, num_tokens: int) -> Receipt:
        """As `Session.rewind`."""
        return await in_thread(functools.partial(self.session.rewind, num_tokens))

    async def pin(self, ttl: float, budget: int | None = None) -> Receipt:
        """As `Session.pin`."""
        return await in_thread(functools.partial(self.session.pin, ttl, budget))

    async def demote(self, tier: Literal["host", "disk"] = "host") -> Receipt:
        """As `Session.demote`."""
        return await in_thread(functools.partial(self.session.demote, tier))

    async def prefetch(self) -> Receipt:
        """As `Session.prefetch`."""
        return await in_thread(self.session.prefetch)

    async def save(self, path: str | Path) -> Receipt:
        """As `Session.save`."""
        return await in_thread(functools.partial(self.session.save, path))

    async def close(self) -> Receipt:
        """As `Session.close`."""
        return await in_thread(self.session.close)

    async def token_ids(self) -> list[int]:
        """As `Session.token_ids`."""
        return await in_thread(lambda: self.session.token_ids)

    async def messages(self) -> list[Message]:
        """As `Session.messages`."""
        return await in_thread(lambda: self.session.messages)

    async def explain(self) -> Explanation:
        """As `Session.explain`."""
        return await in_thread(self.session.explain)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.session.__exit__)

    def __repr__(self) -> str:
        return f"Async{self.session!r}"


async def in_thread(call: Callable[[], Result]) -> Result:
    """If the task is cancelled meanwhile, so is what the call returns."""
    import asyncio  # 50 ms that `import paged` need not take

    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_give_up)
        raise


def _give_up(future: asyncio.Future[Any]) -> None:
    if future.cancelled() or future.exception() is not None:
        return
    result = future.result()
    if isinstance(result, Handle):
        result.cancel()
    elif isinstance(result, Session):
        result._drop()
