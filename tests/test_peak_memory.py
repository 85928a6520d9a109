# SPDX-License-Identifier: Apache-2.0
"""What a process holds at most from its start to the first token: the weights once, the keys and values that were
written, and little else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

# What a load adds to `import paged` beside the weights: the bytes of tokens, kernels' scratch, keys and values, and
# modules. None of it grows with the model's matrices or with the size of the KV pool.
REST = 24 << 20
KV_CACHE = 256 << 20
TOKENS = 32

RUN = """
import sys, paged
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
imported = peak()
with paged.LLM(sys.argv[1], num_threads=2, kv_cache_bytes=int(sys.argv[2])) as llm:
    llm.generate(list(range(100, 100 + int(sys.argv[3]))), paged.SamplingParams(temperature=0.0, max_tokens=1))
    print(peak() - imported)
"""


@pytest.mark.parametrize(
    ("model", "weights"),
    [("smollm2-135m-instruct.gguf", ""), ("smollm2-135m-instruct", "model.safetensors")],
    ids=["gguf", "folder"],
)
def test_first_token_takes_the_weights_once(real_models: Mapping[str, Path], model: str, weights: str) -> None:
    path = real_models[model].resolve()
    arguments = [sys.executable, "-c", RUN, str(path), str(KV_CACHE), str(TOKENS)]
    added = 1024 * int(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert added <= 1.15 * (path / weights if path.is_dir() else path).stat().st_size + REST
