# SPDX-License-Identifier: Apache-2.0
"""Ray Data over two workers on this machine: the rows of one process, none lost or doubled when a worker is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'paged[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'paged[ray]'")

from paged import SamplingParams  # noqa: E402
from paged.integrations.ray import GenerateWorker, assigned_options, generate  # noqa: E402

OPTIONS = {"dtype": "float32", "kv_cache_bytes": 16 << 20}
PARAMS = SamplingParams(temperature=1.0, max_tokens=40)  # hot: tokens differ with the seed
ROWS = [{"id": index, "prompt": [5 + index % 50, 6, 7 + index % 3]} for index in range(60)]
Answer = tuple[int, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find the tests' folder
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def run_here(worker: GenerateWorker, batch: dict[str, Any]) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        return await anext(worker(batch))

    return asyncio.run(first())


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, Answer]:
    """By id, in this process: the number of tokens and how it ended."""
    worker = GenerateWorker(folder, PARAMS, llm_options=OPTIONS)
    batch = run_here(worker, {key: [row[key] for row in ROWS] for key in ("id", "prompt")})
    return by_id(dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def by_id(rows: Iterable[Mapping[str, Any]]) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    for row in rows:
        assert row["id"] not in found, "a row came twice"
        assert row["error"] == ""
        found[row["id"]] = (int(row["num_tokens"]), row["finish_reason"])
    return found


def test_two_workers_give_the_rows_of_one_process(cluster: None, folder: Path, expected: Mapping[int, Answer]) -> None:
    assert len(set(expected.values())) > 5  # or equal would say little
    answers = generate(
        ray.data.from_items(ROWS, override_num_blocks=6), folder, PARAMS, workers=2, batch_size=4,
        llm_options=OPTIONS, num_cpus=1,
    )  # fmt: skip
    assert by_id(answers.iter_rows()) == expected


class Killed(GenerateWorker):
    """The first to see row 30 is killed there. Every worker leaves a file named after its process."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._killed = folder / "killed"
        (folder / f"worker-{os.getpid()}").touch()

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if 30 in batch["id"] and not self._killed.exists():
            self._killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        async for answered in super().__call__(batch):
            yield answered


def test_a_killed_worker_is_replaced_and_no_row_is_lost(
    cluster: None, folder: Path, expected: Mapping[int, Answer], tmp_path: Path
) -> None:
    arguments = {"model": folder, "sampling_params": PARAMS, "llm_options": OPTIONS, "folder": tmp_path}
    answers = ray.data.from_items(ROWS, override_num_blocks=6).map_batches(
        Killed,
        fn_constructor_kwargs=arguments,
        batch_size=4,
        batch_format="numpy",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    assert by_id(answers.iter_rows()) == expected
    assert (tmp_path / "killed").exists()
    assert len(list(tmp_path.glob("worker-*"))) == 3


class Measured(GenerateWorker):
    """Adds the bytes of memory that its process, and no other, holds."""

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for answered in super().__call__(batch):
            status = Path("/proc/self/status").read_text()
            private = int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]
            yield answered | {"worker": [os.getpid()] * len(batch["id"]), "private": [private] * len(batch["id"])}


def test_memory_does_not_grow_with_the_rows(cluster: None, folder: Path) -> None:
    count, row_bytes = 240, 1 << 20  # more than Ray's store of objects holds
    rows = ray.data.range(count, override_num_blocks=count // 8).map_batches(
        lambda batch: {**batch, "prompt": [[5, 6]] * len(batch["id"]), "payload": [b"x" * row_bytes] * len(batch["id"])}
    )
    arguments = {"model": folder, "sampling_params": SamplingParams(max_tokens=2), "llm_options": OPTIONS}
    answers = rows.map_batches(
        Measured,
        fn_constructor_kwargs=arguments,
        batch_size=4,
        batch_format="numpy",
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    private: dict[int, list[int]] = {}
    for row in answers.iter_rows():
        assert len(row["payload"]) == row_bytes
        private.setdefault(row["worker"], []).append(row["private"])
    assert sum(map(len, private.values())) == count
    for sizes in private.values():
        assert max(sizes) - sizes[0] < count * row_bytes // 4


def test_the_engine_takes_the_share_that_ray_assigned(cluster: None) -> None:
    def share(cpus: float) -> Any:
        return ray.get(ray.remote(num_cpus=cpus)(assigned_options).remote())

    assert [share(2), share(0.5), share(0)] == [{"num_threads": 2}, {"num_threads": 1}, {}]
    assert assigned_options() == {}  # of the process that drives Ray


def test_a_row_that_cannot_run_fails_alone(folder: Path) -> None:
    worker = GenerateWorker(folder, PARAMS, llm_options=OPTIONS)
    batch = run_here(worker, {"prompt": [[5, 6], [5, -6], [], "a text", [5, 6]]})
    assert list(batch["finish_reason"])[1:4] == ["error"] * 3
    assert "-6" in batch["error"][1] and "tokenizer" in batch["error"][3]
    assert batch["error"][0] == batch["error"][4] == ""
    assert batch["num_tokens"][0] == batch["num_tokens"][4] > 0


def test_conversations_are_rendered(real_models: Mapping[str, Path]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8)
    worker = GenerateWorker(real_models["smollm2-135m-instruct.gguf"], params, llm_options={"kv_cache_bytes": 8 << 20})
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    batch = run_here(worker, {"prompt": [messages, "What is the capital of France?"]})
    assert batch["text"][0] == worker._llm.chat(messages, params).text
    assert batch["text"][1] == worker._llm.generate("What is the capital of France?", params).text


@pytest.mark.parametrize("asked", [{"n": 2}, {"logprobs": 0}, {"prompt_logprobs": 1}])
def test_what_has_no_column_is_refused_before_anything_runs(asked: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(asked))}={next(iter(asked.values()))}"):
        generate(None, "any", SamplingParams(**asked))
    with pytest.raises(ValueError, match="one answer"):
        GenerateWorker("any", SamplingParams(**asked))


def test_a_missing_column_is_named(folder: Path) -> None:
    worker = GenerateWorker(folder, PARAMS, llm_options=OPTIONS)
    with pytest.raises(ValueError, match="no column 'prompt', only text"):
        run_here(worker, {"text": ["a"]})
