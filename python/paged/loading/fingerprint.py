# SPDX-License-Identifier: Apache-2.0
"""Which weights these are: what is computed with them is of use with no others."""

from __future__ import annotations

import hashlib
import json

from paged.loading.checkpoint import Checkpoint

_PAGES, _PAGE_BYTES = 16, 256


def fingerprint(checkpoint: Checkpoint) -> str:
    """64 hex digits, of the configuration, the names and shapes of all tensors, and bytes all over each of them:
    whoever trains a matrix changes all of it, and to read whole checkpoints would take seconds."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True, default=str).encode())
    for name in sorted(checkpoint.names()):
        tensor = checkpoint.tensor(name)
        data = tensor.data
        digest.update(f"\n{name} {tensor.type} {tensor.shape} {data.size}:".encode())
        last = max(0, data.size - _PAGE_BYTES)
        for page in range(_PAGES):
            start = last * page // (_PAGES - 1)
            digest.update(data[start : start + _PAGE_BYTES].tobytes())
        if tensor.unload is not None:
            tensor.unload()  # around each byte the system maps sixteen pages
    return digest.hexdigest()
