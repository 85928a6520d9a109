# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI: its continuous batching pipeline on a GGUF file, with its defaults (8-bit KV cache)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worker import Engine, Options, serve

_KV_CACHE_GIB = 1


class OpenVino:
    """One pipeline for single streams and batches; `step()` is called until no request is left, as its servers do."""

    def __init__(self, options: Options) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self.version = f"openvino-genai {openvino_genai.__version__}"
        scheduler: Any = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = _KV_CACHE_GIB
        scheduler.max_num_batched_tokens = options.max_model_len
        scheduler.max_num_seqs = options.max_sequences
        properties = {"INFERENCE_NUM_THREADS": options.threads}
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)
        self._next_id = 0

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        handle = self._add(prompt, max_tokens)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if tokens := _new_tokens(handle):
                on_tokens(len(tokens))

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        handles = [self._add(prompt, wanted) for prompt, wanted in zip(prompts, max_tokens, strict=True)]
        made: list[list[int]] = [[] for _ in handles]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle, ids in zip(handles, made, strict=True):
                ids += _new_tokens(handle)
        return made

    def warm_prefix(self, prefix: list[int]) -> None:
        self.batch([prefix], [1], 0)

    def _add(self, prompt: list[int], max_tokens: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._next_id += 1
        ids = self._openvino.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
        return self._pipeline.add_request(self._next_id, ids, config)


def _new_tokens(handle: Any) -> list[int]:
    tokens: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
    return tokens


def load(options: Options) -> tuple[Engine, float]:
    start = time.perf_counter()
    import openvino_genai  # noqa: F401

    import_seconds = time.perf_counter() - start
    return OpenVino(options), import_seconds


if __name__ == "__main__":
    serve(load)
