# SPDX-License-Identifier: Apache-2.0
"""A progress bar for what is mostly over before one would be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_SECONDS = 1.0


def late_progress(items: Sequence[T], *, desc: str, unit: str) -> Iterator[T]:
    """The items; a bar on stderr counts them once that has taken a second. Until then not even tqdm is imported."""
    start, bar = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if bar is not None:
                bar.update(done - bar.n)
            elif time.monotonic() - start > _SECONDS:
                from paged.progress import ProgressBar

                bar = ProgressBar(total=len(items), initial=done, desc=desc, unit=unit, leave=False)
            yield item
    finally:
        if bar is not None:
            bar.close()
