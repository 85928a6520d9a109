# SPDX-License-Identifier: Apache-2.0
"""Python that takes part in choosing a request's tokens: guides, which say what may come next, and logits processors.

Both run on threads of their own. The engine never waits for them: a request whose guide has not answered yet stands
still, and all others go on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from paged import _C
    from paged.sampling import SamplingParams

_MAX_IDLE_THREADS = 4


class Stop:
    """The type of `STOP`."""

    def __repr__(self) -> str:
        return "paged.guide.STOP"


STOP: Final = Stop()
"""What a guide returns to end the answer here, as if a stop token had come."""

Mask = npt.NDArray[np.uint32]
LogitsProcessor = Callable[[list[int], npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@runtime_checkable
class Guide(Protocol):
    """Says before each token of one request which tokens may come next."""

    def next_mask(self, token_ids: list[int]) -> Mask | Stop | None:
        """`token_ids`: all tokens generated so far; not to be changed. Called once for each token, never twice at the
        same time, on changing threads.

        Returns uint32 [ceil(vocab_size / 32)]: token t is allowed where bit t % 32 of word t // 32 is set; None where
        everything is; or `STOP`. Whatever it raises fails the request, and no other.
        """
        ...


@dataclass
class _Guided:
    """One request, on the threads' side."""

    make_guide: Callable[[], Guide] | None
    processors: Sequence[LogitsProcessor]
    token_ids: list[int] = field(default_factory=list)
    guide: Guide | None = None

    def answer(self, desk: _C.GuideDesk, question: _C.GuideQuestion) -> None:
        self.token_ids += question.tokens
        mask = self._next_mask()
        if isinstance(mask, Stop):
            desk.answer_stop(question)
            return
        logits = question.logits
        if logits is None:
            if mask is None:
                desk.answer_anything(question)
            else:
                desk.answer_mask(question, mask)
            return
        for processor in self.processors:
            logits = processor(self.token_ids, logits)
        if mask is not None:
            logits = np.where(_allowed(mask, desk.vocab_size), logits, -np.inf)
        token = desk.sample(question, logits)
        self.token_ids.append(token)  # before the answer, after which another thread may get the next question
        desk.answer_token(question, token)

    def _next_mask(self) -> Mask | Stop | None:
        if self.make_guide is None:
            return None
        if self.guide is None:
            self.guide = self.make_guide()
        mask = self.guide.next_mask(self.token_ids)
        if not (mask is None or isinstance(mask, Stop | np.ndarray)):
            raise TypeError(f"next_mask() must return a numpy array, None or STOP, got {type(mask).__name__}")
        return mask


def _allowed(mask: Mask, vocab_size: int) -> npt.NDArray[np.bool_]:
    words = np.ascontiguousarray(mask, dtype="<u4")
    expected = (-(-vocab_size // 32),)
    if words.shape != expected:
        raise ValueError(f"a mask for a vocabulary of {vocab_size} has shape {expected}, got {words.shape}")
    return np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little").astype(np.bool_)


class GuideWorkers:
    """The threads that answer an engine's questions. There are none before the first guided request; then always one
    more than are busy, so that a slow guide delays its own request alone. They end when the engine closes."""

    def __init__(self, desk: _C.GuideDesk) -> None:
        self._desk = desk
        self._guided: dict[int, _Guided] = {}
        self._lock = threading.Lock()
        self._num_idle = 0
        self._next_key = 0

    def submit(self, params: SamplingParams, submit: Callable[..., _C.Request]) -> _C.Request:
        """Calls `submit` with the argument `guide` that `params` asks for."""
        if params.guide is None and not params.logits_processors:
            return submit()
        with self._lock:
            self._next_key += 1
            key = self._next_key
            self._guided[key] = _Guided(params.guide, params.logits_processors)
            if self._num_idle == 0:
                self._start_thread()
        try:
            return submit(guide=("token" if params.logits_processors else "mask", key))
        except BaseException:
            del self._guided[key]
            raise

    def _start_thread(self) -> None:
        self._num_idle += 1
        threading.Thread(target=self._work, name="paged-guide", daemon=True).start()

    def _work(self) -> None:
        while os.read(self._desk.read_end, 1):
            with self._lock:
                self._num_idle -= 1
                if self._num_idle == 0:
                    self._start_thread()
            self._take_question()
            with self._lock:
                if self._num_idle >= _MAX_IDLE_THREADS:
                    return
                self._num_idle += 1

    def _take_question(self) -> None:
        question = self._desk.next()
        if question is None:
            return
        if question.ended:
            self._guided.pop(question.key, None)
            return
        try:
            self._guided[question.key].answer(self._desk, question)
        except BaseException as error:  # whatever a guide raises, SystemExit too, is its request's alone
            self._desk.answer_error(question, f"{type(error).__name__}: {error}")
