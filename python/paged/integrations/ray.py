# SPDX-License-Identifier: Apache-2.0
"""Many machines: Ray Data's `map_batches` over one engine per worker. Ray schedules, restarts and streams; needs Ray.

>>> import ray
>>> from paged.integrations.ray import generate
>>> dataset = generate(ray.data.read_parquet("prompts"), "smollm2-135m", workers=4, num_cpus=8)
>>> dataset.write_parquet("answers")
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paged.llm import LLM
from paged.outputs import Completion, RequestError, Timings
from paged.sampling import SamplingParams

if TYPE_CHECKING:
    import ray.data

Batch = dict[str, Any]


class GenerateWorker:
    """What a worker of `map_batches` runs: one engine that lives as long as its actor.

    It takes batches with a column of prompts: strings, lists of token ids, or conversations as `LLM.chat` takes them.
    It adds the columns "text", "finish_reason", "num_tokens" and "error": an empty string, or why this row, and no
    other, has finish_reason "error". While Ray hands out the next batch, the slow rows of the last still run beside it.

    A row's result depends on the row alone, not on the worker or the batch, so a row that Ray runs again after a
    failure comes out the same: a request without a seed gets one from its prompt.
    """

    def __init__(
        self,
        model: str | Path,
        sampling_params: SamplingParams | None = None,
        prompt_column: str = "prompt",
        llm_options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            sampling_params: of every row; None: the model's `default_sampling_params`.
            llm_options: of `LLM`. What is not given follows from the share that Ray assigned to this worker: its CPUs
                as num_threads; with a share of a GPU, device="cuda" and that share of its memory.

        Raises:
            ValueError: sampling_params ask for what has no column: n, logprobs or prompt_logprobs.
        """
        _check_params(sampling_params)
        self._prompt_column = prompt_column
        self._llm = LLM(model, **{**assigned_options(), **(llm_options or {})})
        self._params = self._llm.default_sampling_params if sampling_params is None else sampling_params

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        import asyncio

        if self._prompt_column not in batch:
            raise ValueError(f"the data has no column {self._prompt_column!r}, only {', '.join(batch)}")
        answers = [self._answer(value) for value in batch[self._prompt_column]]
        yield batch | _columns(await asyncio.gather(*answers))

    async def _answer(self, value: Any) -> Completion:
        try:
            prompt = self._prompt(value)
            return await self._llm.submit(prompt, self._seeded(prompt))
        except RequestError as error:
            return error.completion
        except (TypeError, ValueError) as error:
            never = Timings(None, None, None, np.zeros(0, np.float32))
            return Completion("", [], "error", 0, 0, never, str(error))

    def _prompt(self, value: Any) -> str | list[int]:
        if isinstance(value, str):
            return str(value)  # numpy's strings are a subclass
        values = np.asarray(value).tolist()
        if isinstance(values, list) and values and isinstance(values[0], Mapping):
            return self._llm.render_chat(values)
        return values  # type: ignore[no-any-return]  # submit says what else it is

    def _seeded(self, prompt: str | list[int]) -> SamplingParams:
        if self._params.seed is not None:
            return self._params
        digest = hashlib.blake2b(repr(prompt).encode(), digest_size=8).digest()
        return dataclasses.replace(self._params, seed=int.from_bytes(digest))


def generate(
    dataset: ray.data.Dataset,
    model: str | Path,
    sampling_params: SamplingParams | None = None,
    *,
    workers: int = 1,
    batch_size: int = 64,
    prompt_column: str = "prompt",
    llm_options: Mapping[str, Any] | None = None,
    **resources: Any,
) -> ray.data.Dataset:
    """The dataset with the columns of `GenerateWorker` added; as with all of Ray Data, nothing runs before it is read.

    Args:
        workers: engines, each in an actor of its own.
        batch_size: rows of a batch. A worker has a few batches at once, four by Ray's default: what bounds its memory.
        resources: further arguments of `map_batches`: num_cpus and num_gpus of a worker, accelerator_type, ...
    """
    from ray.data import ActorPoolStrategy

    _check_params(sampling_params)
    arguments = {"model": model, "sampling_params": sampling_params, "prompt_column": prompt_column}
    return dataset.map_batches(
        GenerateWorker,
        fn_constructor_kwargs=arguments | {"llm_options": llm_options},
        batch_size=batch_size,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=workers),
        **resources,
    )


def assigned_options() -> dict[str, Any]:
    """Options of `LLM` for what Ray gave this worker; none in a process that is no worker of Ray's."""
    import ray

    context: Any = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.worker.mode != ray.WORKER_MODE:
        return {}
    resources = context.get_assigned_resources()
    options: dict[str, Any] = {}
    if resources.get("CPU", 0) > 0:
        options["num_threads"] = max(1, int(resources["CPU"]))
    if resources.get("GPU", 0) > 0:  # Ray shows the worker its own GPUs only
        options["device"] = "cuda"
        options["gpu_memory_utilization"] = 0.85 * min(1.0, resources["GPU"])
    return options


def _check_params(params: SamplingParams | None) -> None:
    if params is not None and (params.n > 1 or params.logprobs is not None or params.prompt_logprobs is not None):
        raise ValueError(
            f"a row has one answer and no columns for log-probabilities, got n={params.n}, logprobs={params.logprobs} "
            f"and prompt_logprobs={params.prompt_logprobs}"
        )


def _columns(completions: list[Completion]) -> Batch:
    return {
        "text": np.array([completion.text for completion in completions], object),
        "finish_reason": np.array([completion.finish_reason for completion in completions], object),
        "num_tokens": np.array([len(completion.token_ids) for completion in completions], np.int64),
        "error": np.array([completion.error or "" for completion in completions], object),
    }
