# SPDX-License-Identifier: Apache-2.0
"""Waits for many requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paged.handle import Handle


def wait_all(handles: Sequence[Handle], use_tqdm: bool) -> None:
    """Until all have finished, with a progress bar where asked; who is not waited for any more is cancelled."""
    try:
        _wait(handles, use_tqdm)
    finally:
        for handle in handles:
            handle.cancel()


async def wait_all_async(handles: Sequence[Handle]) -> None:
    """The same in an event loop, without a bar."""
    try:
        for handle in handles:
            await handle._ready(until_finished=True)
    finally:
        for handle in handles:
            handle.cancel()


def _wait(handles: Sequence[Handle], use_tqdm: bool) -> None:
    if not use_tqdm or len(handles) < 2:
        for handle in handles:
            handle._wait_finished()
        return
    from paged.progress import ProgressBar

    with ProgressBar(total=len(handles), desc="generating", unit="prompt") as bar:
        waiting = list(handles)
        while waiting:
            waiting[0]._wait_finished(0.1)
            still = [handle for handle in waiting if not handle.done()]
            bar.update(len(waiting) - len(still))
            waiting = still
