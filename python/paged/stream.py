# SPDX-License-Identifier: Apache-2.0
"""The stream of one request."""

from __future__ import annotations

from paged import _C
from paged.outputs import Chunk


class Stream:
    """An iterator of `Chunk`s. Closing it, leaving a `with` block or dropping it cancels what still runs."""

    def __init__(self, engine: _C.Engine, request: _C.Request) -> None:
        self._engine = engine
        self._request = request
        self._ended = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self._ended:
            raise StopIteration
        self._request.wait()
        text, token_ids, reason = self._request.take()
        self._ended = reason is not None
        if reason == "error":
            raise RuntimeError(self._request.error)
        return Chunk(text, token_ids, reason)

    def close(self) -> None:
        """Cancels the request if it still runs; the iteration is over."""
        self._ended = True
        if not self._request.finished:
            self._engine.cancel(self._request.id)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
