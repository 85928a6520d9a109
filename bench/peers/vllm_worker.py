# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU build: its engine in this process, stepped by hand so that the first token's time is seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from worker import Engine, Options, serve


class Vllm:
    """`vllm.LLM` with its defaults (compiled model, prefix caching, chunked prefill)."""

    def __init__(self, options: Options) -> None:
        import vllm

        self._params = vllm.SamplingParams
        self.version = f"vLLM {vllm.__version__} (CPU)"
        llm: Any = vllm.LLM(
            options.model,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_sequences,
            skip_tokenizer_init=True,
        )
        self._engine = llm.llm_engine
        self._next_id = 0

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        self._run([prompt], [max_tokens], on_tokens)

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        return self._run(prompts, max_tokens, lambda count: None)

    def warm_prefix(self, prefix: list[int]) -> None:
        self.batch([prefix + prefix[:1]], [1], 0)

    def _run(
        self, prompts: list[list[int]], max_tokens: list[int], on_tokens: Callable[[int], None]
    ) -> list[list[int]]:
        order = []
        for prompt, count in zip(prompts, max_tokens, strict=True):
            params = self._params(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            order.append(str(self._next_id))
            self._next_id += 1
            self._engine.add_request(order[-1], {"prompt_token_ids": prompt}, params)
        made: dict[str, list[int]] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                ids = list(output.outputs[0].token_ids)
                on_tokens(len(ids) - len(made.get(output.request_id, ())))
                made[output.request_id] = ids
        return [made[request_id] for request_id in order]


def load(options: Options) -> tuple[Engine, float]:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0))[: options.threads])),
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_NO_USAGE_STATS="1",
    )
    start = time.perf_counter()
    import vllm  # noqa: F401

    import_seconds = time.perf_counter() - start
    return Vllm(options), import_seconds


if __name__ == "__main__":
    serve(load)
