# SPDX-License-Identifier: Apache-2.0
"""One call on a thread of its own while a block runs. (A pool of `concurrent.futures` leaves a hook for the exit.)"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Meanwhile(Generic[T]):
    """`with Meanwhile(function, ...) as call:` begins the call; the end of the block waits for it, however it ends."""

    def __init__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._function: Callable[[], T] = functools.partial(function, *args, **kwargs)
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="paged-load", daemon=True)

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # whoever asks for the result gets it
            self._error = error

    def __enter__(self) -> Meanwhile[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def result(self) -> T:
        """What the call returned, after the block. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]
