# SPDX-License-Identifier: Apache-2.0
"""A read-only memory map of one file.

Owns the mapping; hands out views that keep it alive, so a view stays valid after `close()`. Opening reads nothing but
what the caller then touches. As with every memory map, a file that is shortened while it is mapped kills the process:
replace model files by renaming, never in place.
"""

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paged.loading.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]


class MappedFile:
    """`buffer` supports slicing to bytes and `struct.unpack_from`; `size` is its length in bytes."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if `path` is not a readable, regular, non-empty file."""
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a regular file, found {'a folder' if path.is_dir() else 'none'}")
        try:
            with path.open("rb") as file:
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise CheckpointError(f"{path}: cannot be memory-mapped: {error}") from error
        self.path = path
        self.size = len(self.buffer)

    def view(self, offset: int, num_bytes: int) -> Bytes:
        """uint8 [num_bytes], read-only, no copy. The caller has checked the bounds."""
        return np.frombuffer(self.buffer, np.uint8, num_bytes, offset)

    def unload(self, offset: int, num_bytes: int) -> None:
        """Lets the memory of these bytes go; whoever reads them again gets them from the file."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (offset + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED, first, size)

    def close(self) -> None:
        """Unmaps now if no view is alive, else with the last view. Idempotent."""
        try:
            self.buffer.close()
        except BufferError:
            del self.buffer
        except AttributeError:
            pass
