# SPDX-License-Identifier: Apache-2.0
"""`HandleGroup`: the handle of a request with several answers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from paged.handle import Handle
from paged.outputs import Completion, RequestError


class HandleGroup(Handle):
    """The n answers to one prompt, waited for, awaited, cancelled and stopped together.

    Their chunks come from each of `outputs` for itself, or all to the request's `on_chunk`, which sees the `index` of
    each.
    """

    def __init__(self, outputs: Sequence[Handle]) -> None:
        self._outputs = tuple(outputs)

    @property
    def outputs(self) -> Sequence[Handle]:
        """One handle for each answer."""
        return self._outputs

    @property
    def id(self) -> int:
        """That of the first answer."""
        return self._outputs[0].id

    def done(self) -> bool:
        """All answers have finished."""
        return all(handle.done() for handle in self._outputs)

    def cancel(self) -> None:
        """Cancels all answers."""
        for handle in self._outputs:
            handle.cancel()

    def stop(self) -> None:
        """Ends all answers gracefully."""
        for handle in self._outputs:
            handle.stop()

    def close(self) -> None:
        """Cancels those that still run; the iterations over them are over."""
        for handle in self._outputs:
            handle.close()

    def __del__(self) -> None:
        pass  # each answer is cancelled when its own handle is dropped

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{len(self._outputs)} answers come at once: iterate over each of `outputs`, or give on_chunk")

    __next__ = __aiter__ = __anext__ = __iter__

    def add_done_callback(self, callback: Callable[[Handle], object]) -> None:
        """Calls `callback(handle)` once all answers have finished; as `Handle.add_done_callback` otherwise."""
        self._after(len(self._outputs), callback)

    def _after(self, num_waited: int, callback: Callable[[Handle], object]) -> None:
        if num_waited == 0:
            callback(self)
        else:
            self._outputs[num_waited - 1].add_done_callback(lambda _: self._after(num_waited - 1, callback))

    def __repr__(self) -> str:
        return f"HandleGroup(n={len(self._outputs)}, {'done' if self.done() else 'running'})"

    def _wait_finished(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        return all(
            handle._wait_finished(None if end is None else max(0.0, end - time.monotonic())) for handle in self._outputs
        )

    async def _ready(self, *, until_finished: bool) -> None:
        try:
            for handle in self._outputs:
                await handle._ready(until_finished=until_finished)
        except BaseException:
            self.cancel()
            raise

    def _completion(self) -> Completion:
        first, *others = (handle._completion() for handle in self._outputs)
        return dataclasses.replace(first, others=others)

    def _checked_completion(self) -> Completion:
        completion = self._completion()
        for output in completion.outputs:
            if output.error is not None:
                raise RequestError(output.error, completion)
        return completion
