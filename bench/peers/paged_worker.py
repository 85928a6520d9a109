# SPDX-License-Identifier: Apache-2.0
"""Our own engine, through its public API."""

from __future__ import annotations

import time
from collections.abc import Callable

from worker import Engine, Options, serve


class Paged:
    """`paged.LLM`. `single` streams; `batch` submits every request in one call of `generate`."""

    def __init__(self, options: Options) -> None:
        import paged

        self._params = paged.SamplingParams
        self.version = f"paged {paged.__version__}"
        self._llm = paged.LLM(
            options.model,
            dtype=options.dtype,
            num_threads=options.threads,
            max_model_len=options.max_model_len,
            max_num_sequences=options.max_sequences,
        )

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        params = self._params(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        for chunk in self._llm.stream(prompt, params):
            if chunk.token_ids:
                on_tokens(len(chunk.token_ids))

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        params = [self._params(temperature=0.0, max_tokens=count, ignore_eos=True) for count in max_tokens]
        return [list(output.token_ids) for output in self._llm.generate(prompts, params, use_tqdm=False)]

    def warm_prefix(self, prefix: list[int]) -> None:
        self.batch([prefix + prefix[:1]], [1], 0)


def load(options: Options) -> tuple[Engine, float]:
    start = time.perf_counter()
    import paged  # noqa: F401

    import_seconds = time.perf_counter() - start
    return Paged(options), import_seconds


if __name__ == "__main__":
    serve(load)
