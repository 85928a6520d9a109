# SPDX-License-Identifier: Apache-2.0
"""How one thread waits for any number of requests and calls who wants to know."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from paged import _C

Waiting = dict[int, list[Callable[[], object]]]


class Notifier:
    """A thread that sleeps in C++, without the GIL, until requests of one engine have news, and calls who waits for
    them. It starts with the first wait and ends with `close()` or with the last reference to the notifier."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue = _C.NewsQueue()
        self._waiting: Waiting = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._pid = os.getpid()

    def call(self, request: _C.Request, callback: Callable[[], object], *, until_finished: bool) -> None:
        """Calls `callback()` once, on the notifier's thread, as soon as there is something to take or the request has
        finished, or with `until_finished` only then. The news that others wait for may bring the call earlier. After
        `close()`, when all requests have finished, it is called at once."""
        with self._lock:
            if not self._closed:
                self._waiting.setdefault(request.id, []).append(callback)
                request.notify(self._queue, until_finished=until_finished)
                if self._thread is None:
                    self._start()
                return
        callback()

    def close(self) -> None:
        """Waits for the calls that are due, unless one of them is who closes. The engine must be closed."""
        if os.getpid() != self._pid:
            return  # in a forked child there is no thread, and the lock may be held for ever
        with self._lock:
            self._closed = True
        self._queue.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __del__(self) -> None:
        self._queue.close()

    def _start(self) -> None:
        # The thread knows nothing of the notifier, which could otherwise never be collected.
        arguments = (self._queue, self._waiting, self._lock)
        self._thread = threading.Thread(target=_run, args=arguments, name=self._name, daemon=True)
        self._thread.start()


def _run(queue: _C.NewsQueue, waiting: Waiting, lock: threading.Lock) -> None:
    while ids := queue.wait():
        _dispatch(ids, waiting, lock)


def _dispatch(ids: list[int], waiting: Waiting, lock: threading.Lock) -> None:
    with lock:
        callbacks = [callback for id in ids for callback in waiting.pop(id, ())]
    while callbacks:
        call_reporting(callbacks.pop(0))  # and forgets it: what it holds must not outlive it here


def call_reporting(callback: Callable[..., object], *arguments: object) -> bool:
    """False: it raised, whatever it was, and `threading.excepthook` was told. The thread goes on: it is not this
    callback's alone."""
    try:
        callback(*arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, which is not the callback's
        report = (type(error), error, error.__traceback__, threading.current_thread())
        with contextlib.suppress(BaseException):  # of a hook that somebody has set
            threading.excepthook(threading.ExceptHookArgs(report))
        return False
    return True


class Notifiers:
    """Of one engine: who wakes event loops never waits for the callbacks of users."""

    def __init__(self) -> None:
        self.loops = Notifier("paged-async")
        self.callbacks = Notifier("paged-callbacks")

    def close(self) -> None:
        self.loops.close()
        self.callbacks.close()
