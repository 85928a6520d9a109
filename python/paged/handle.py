# SPDX-License-Identifier: Apache-2.0
"""`Handle`: one request in every style: waited for, iterated, awaited, or with callbacks."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from paged import _C
from paged.checks import shown
from paged.logprobs import prompt_logprobs, token_logprobs
from paged.notifier import Notifiers, call_reporting
from paged.outputs import Chunk, Completion, RequestError, Timings

if TYPE_CHECKING:
    import asyncio

OnChunk = Callable[[Chunk], object]

_LONGEST_TIMEOUT = 1e9  # seconds; more than anybody waits, and a number that clocks can add


class Handle:
    """A request that was submitted. May be used from any thread and from any number of event loops.

    Its chunks go to one consumer, `for`, `async for` or `on_chunk`: whole characters, several tokens at once when the
    consumer is slower than the engine. The whole answer is there besides: `result()`, `await`, done callbacks. A
    consumer never holds up the engine: the request keeps its answer (at most max_tokens ids and their text) and nothing
    else.

    A request of which nobody can learn any more is cancelled: close the handle, leave its `with` block or drop it (one
    with callbacks lives until it has finished). So is one whose `await` or `async for` is cancelled, and one that a
    `KeyboardInterrupt` finds waited for: its traceback, which notebooks and debuggers keep, would hold the handle.
    """

    def __init__(
        self,
        engine: _C.Engine,
        request: _C.Request,
        num_prompt_tokens: int,
        notifiers: Notifiers,
        on_chunk: OnChunk | None = None,
        index: int = 0,
    ) -> None:
        self._engine = engine
        self._index = index
        self._request = request
        self._num_prompt_tokens = num_prompt_tokens
        self._notifiers = notifiers
        self._ended = False  # the iteration
        self._on_chunk = on_chunk
        self._has_callbacks = on_chunk is not None
        self._lock = threading.Lock()  # guards what follows
        self._done_callbacks: list[Callable[[Handle], object]] = []
        self._called_back = False
        if on_chunk is not None:
            self._await_callback()

    # -- the whole answer ----------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Completion:
        """Waits until it has finished, at most `timeout` seconds.

        A request that was cancelled or stopped gives what had come until then.

        Raises:
            TimeoutError: it still runs, and goes on.
            RequestError: it failed; `error.completion` has what had come.
            EngineClosedError: called in a forked process.
            TypeError, ValueError: `timeout` is no number.
        """
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, int | float):
                raise TypeError(f"timeout must be a number of seconds, got {shown(timeout)}")
            if timeout != timeout:  # an integer may be too large for math.isnan
                raise ValueError("timeout must be a number of seconds, got NaN")
            timeout = min(max(timeout, 0), _LONGEST_TIMEOUT)
        try:
            finished = self._wait_finished(timeout)
        except KeyboardInterrupt:
            self.close()
            raise
        if not finished:
            raise TimeoutError(f"the request still runs after {timeout} s; cancel() or stop() ends it")
        return self._checked_completion()

    def __await__(self) -> Generator[Any, Any, Completion]:
        """As `result()`. Cancelling the task that awaits cancels the request."""
        return self._result_async().__await__()

    def done(self) -> bool:
        """Whether it has finished: `result()` then returns at once."""
        return self._request.finished

    # -- chunks --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Chunk:
        try:
            while not self._iteration_over():
                self._request.wait()
                if (chunk := self._next_chunk()) is not None:
                    return chunk
        except KeyboardInterrupt:
            self.close()
            raise
        raise StopIteration

    def __aiter__(self) -> Handle:
        return self

    async def __anext__(self) -> Chunk:
        while not self._iteration_over():
            await self._ready(until_finished=False)
            if (chunk := self._next_chunk()) is not None:
                return chunk
        raise StopAsyncIteration

    # -- ending it -----------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ends it before the next step, with finish_reason "cancelled". Nothing happens if it has finished."""
        if not self._request.finished:
            self._engine.cancel(self._request.id)

    def stop(self) -> None:
        """Ends it gracefully before the next step: what there is, is the answer, with finish_reason "stop"."""
        if not self._request.finished:
            self._engine.stop(self._request.id)

    def close(self) -> None:
        """Cancels it if it still runs; the iteration is over."""
        self._ended = True
        self.cancel()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Handle:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # -- callbacks -----------------------------------------------------------------------------------------------

    def add_done_callback(self, callback: Callable[[Handle], object]) -> None:
        """Calls `callback(handle)` once it has finished, after the last chunk.

        All callbacks of an `LLM` run one after the other on a thread of their own, so a slow one delays the others but
        neither the engine nor anybody who awaits. What one raises goes to `threading.excepthook`.

        Raises:
            TypeError: it cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"a done callback is a callable, got {shown(callback)}")
        with self._lock:
            is_late, is_first = self._called_back, not self._has_callbacks
            if not is_late:
                self._done_callbacks.append(callback)
                self._has_callbacks = True
        if is_late:
            late = functools.partial(call_reporting, callback, self)
            self._notifiers.callbacks.call(self._request, late, until_finished=True)
        elif is_first:
            self._await_callback()  # without the lock: of a closed engine it calls back at once

    # -- about it ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Unique in its engine."""
        return self._request.id

    @property
    def outputs(self) -> Sequence[Handle]:
        """One handle for each of `SamplingParams.n` answers."""
        return (self,)

    def __repr__(self) -> str:
        return f"Handle(id={self.id}, {'done' if self.done() else 'running'})"

    # -- inside --------------------------------------------------------------------------------------------------

    def _wait_finished(self, timeout: float | None = None) -> bool:
        return self._request.wait_finished(timeout)

    def _completion(self) -> Completion:
        text, token_ids, reason, scores = self._request.answer()
        assert reason is not None  # it has finished
        queued, first, total = (seconds if seconds >= 0 else None for seconds in self._request.timings)
        timings = Timings(queued, first, total, self._request.token_seconds)
        error = self._request.error or None
        return Completion(
            text, token_ids, reason, self._num_prompt_tokens, self._request.num_cached_tokens, timings, error,
            logprobs=token_logprobs(scores),
            prompt_logprobs=prompt_logprobs(self._request.prompt_scores(), self._num_prompt_tokens),
        )  # fmt: skip

    def _checked_completion(self) -> Completion:
        completion = self._completion()
        if completion.error is not None:
            raise RequestError(completion.error, completion)
        return completion

    def _iteration_over(self) -> bool:
        if self._on_chunk is not None:
            raise RuntimeError("the chunks of this request go to its on_chunk")
        return self._ended

    def _next_chunk(self) -> Chunk | None:
        """None: another thread took it."""
        chunk = self._take()
        if chunk.finish_reason is not None:
            self._ended = True
            if chunk.finish_reason == "error":
                self._checked_completion()
        return chunk if chunk.token_ids or self._ended else None

    def _take(self) -> Chunk:
        text, token_ids, reason, scores = self._request.take()
        return Chunk(text, token_ids, reason, logprobs=token_logprobs(scores), index=self._index)

    async def _result_async(self) -> Completion:
        await self._ready(until_finished=True)
        return self._checked_completion()

    async def _ready(self, *, until_finished: bool) -> None:
        while not self._request.ready(until_finished=until_finished):
            import asyncio  # 50 ms that `import paged` need not take

            loop = asyncio.get_running_loop()
            news = loop.create_future()
            wake = functools.partial(_wake, loop, news)
            self._notifiers.loops.call(self._request, wake, until_finished=until_finished)
            try:
                await news
            except BaseException:  # the task is cancelled, or its loop is gone
                self.cancel()
                raise

    def _await_callback(self) -> None:
        self._notifiers.callbacks.call(self._request, self._run_callbacks, until_finished=self._on_chunk is None)

    def _run_callbacks(self) -> None:
        """On the thread of the callbacks: takes what has come, and calls the done callbacks at the end."""
        finished = self._request.finished if self._on_chunk is None else self._give_chunk(self._on_chunk)
        if not finished:
            self._await_callback()
            return
        with self._lock:
            self._called_back = True
            callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            call_reporting(callback, self)

    def _give_chunk(self, on_chunk: OnChunk) -> bool:
        chunk = self._take()
        has_news = bool(chunk.token_ids) or chunk.finish_reason is not None
        if has_news and not self._ended and not call_reporting(on_chunk, chunk):
            self.close()  # as an exception in a loop over the chunks would
        return chunk.finish_reason is not None


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits any more
        loop.call_soon_threadsafe(_set, news)


def _set(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
