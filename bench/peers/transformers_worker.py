# SPDX-License-Identifier: Apache-2.0
"""transformers on torch: `generate`; many requests are one batch, padded on the left, run as long as its longest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worker import Engine, Options, serve


class Transformers:
    """`AutoModelForCausalLM` with its defaults (sdpa attention, dynamic cache). Keeps no prefix between calls."""

    def __init__(self, options: Options) -> None:
        import torch
        import transformers

        torch.set_num_threads(options.threads)
        self._torch = torch
        self._criteria = transformers.StoppingCriteriaList
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        dtype = getattr(torch, options.dtype)
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def single(self, prompt: list[int], max_tokens: int, on_tokens: Callable[[int], None]) -> None:
        not_done = self._torch.zeros(1, dtype=self._torch.bool)

        def after_token(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            on_tokens(1)
            return not_done

        self._generate([prompt], max_tokens, self._criteria([after_token]))

    def batch(self, prompts: list[list[int]], max_tokens: list[int], prefix_len: int) -> list[list[int]]:
        rows = self._generate(prompts, max(max_tokens), None)
        return [row[:count] for row, count in zip(rows, max_tokens, strict=True)]

    def warm_prefix(self, prefix: list[int]) -> None:
        pass

    def _generate(self, prompts: list[list[int]], max_tokens: int, criteria: Any) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = self._torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = self._torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with self._torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                stopping_criteria=criteria,
            )
        rows: list[list[int]] = output[:, width:].tolist()
        return rows


def load(options: Options) -> tuple[Engine, float]:
    start = time.perf_counter()
    from transformers import AutoModelForCausalLM  # noqa: F401

    import_seconds = time.perf_counter() - start
    return Transformers(options), import_seconds


if __name__ == "__main__":
    serve(load)
