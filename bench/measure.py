# SPDX-License-Identifier: Apache-2.0
"""Runs cases on engines in rounds, interleaved: every engine answers a case before any meets the next round.

Machines drift; what is compared must be measured minutes apart at most. Medians over the rounds are what is reported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import limits
import workloads
from model_file import weights_of
from peers.client import Worker, WorkerError, worker_command
from peers.engines import TRANSFORMERS, VARIANTS, Environments, Variant

_SERVING = {"max-model-len": 4352, "max-sequences": 32, "max-tokens-in-flight": 16384}
_STARTING = {"max-model-len": 512, "max-sequences": 1, "max-tokens-in-flight": 512}
_BYTES = {"bfloat16": 2, "float32": 4, "BF16": 2, "F16": 2, "F32": 4}
_WARM_UP = list(range(1000, 1008))

# case -> metric -> unit; a unit of time or memory means that less is better.
METRICS = {
    workloads.SINGLE_STREAM.name: {"first_token": "ms", "decode": "tok/s"},
    workloads.MIXED_REQUESTS.name: {"output": "tok/s"},
    workloads.SHARED_PREFIX.name: {"output": "tok/s"},
    workloads.LONG_PROMPT.name: {"prompt": "tok/s"},
    workloads.START_UP.name: {"import": "s", "load_and_first_token": "s", "peak_memory": "MB"},
}
LESS_IS_BETTER = {"ms", "s", "MB"}

Key = tuple[str, str, str]
"""Variant's name, case, metric."""


@dataclass(frozen=True)
class Settings:
    """What to run on. `folder`: a Hugging Face folder; `gguf`: a GGUF file of the same model; either may be missing."""

    folder: Path | None
    gguf: Path | None
    environments: Environments
    threads: int
    rounds: int

    def model(self, variant: Variant) -> Path:
        """The file or folder that `variant` loads, written first where it is a rewritten GGUF."""
        if variant.model == "folder":
            assert self.folder is not None
            return self.folder
        assert self.gguf is not None
        return self.gguf if variant.model == "gguf" else self.environments.gguf(self.gguf, variant.model)

    def variants(self, engines: list[str]) -> list[Variant]:
        """The variants of `engines` that the given models allow, "gguf" named by what the file holds."""
        found = []
        for variant in VARIANTS:
            wanted = self.folder if variant.model == "folder" else self.gguf
            if variant.engine.name not in engines or wanted is None:
                continue
            if variant.model == "gguf":
                variant = replace(variant, precision=weights_of(wanted).precision)
            found.append(variant)
        return found


@dataclass
class Samples:
    """All that one run measured, and what went wrong."""

    values: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    limits: limits.Limits = field(default_factory=limits.Limits)
    versions: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, key: Key) -> float | None:
        return median(self.values[key]) if self.values.get(key) else None


def start(variant: Variant, settings: Settings, sizes: dict[str, int]) -> Worker:
    """A worker of `variant`, loaded and then held."""
    script = Path(__file__).with_name("peers") / variant.engine.worker
    options: dict[str, object] = {
        "model": settings.model(variant),
        "dtype": variant.dtype,
        "threads": settings.threads,
        **sizes,
    }
    environment = {"OMP_NUM_THREADS": str(settings.threads)} | settings.environments.run_env(variant.engine)
    return Worker(worker_command(settings.environments.python(variant.engine), script, options), environment)


def start_serving(variant: Variant, settings: Settings) -> Worker:
    """A worker with room for every workload, warmed up."""
    worker = start(variant, settings, _SERVING)
    try:
        worker.run("single", prompt=_WARM_UP, max_tokens=2)
        worker.run("batch", prompts=[_WARM_UP, _WARM_UP], max_tokens=[2, 2], prefix_len=0)
    except BaseException:
        worker.close()
        raise
    return worker


def run(variants: list[Variant], cases: list[str], settings: Settings) -> Samples:
    """Measures `cases` on `variants`, `settings.rounds` times. An engine that fails is reported and then left out."""
    samples = Samples()
    with ExitStack() as stack:
        workers: dict[Variant, Worker] = {}
        for variant in variants:
            if any(case != workloads.START_UP.name for case in cases):
                _say(f"loading {variant.name}")
                try:
                    workers[variant] = stack.enter_context(start_serving(variant, settings))
                except WorkerError as error:
                    _fail(samples, variant, "loading", error)
        try:
            for round_index in range(settings.rounds):
                _measure_limits(samples.limits, variants, settings)
                for case in cases:
                    for variant in variants:
                        _measure(samples, variant, workers.get(variant), case, round_index, settings)
        except KeyboardInterrupt:
            _say("stopped: reporting what was measured so far")
    return samples


def _measure(
    samples: Samples, variant: Variant, worker: Worker | None, case: str, round_index: int, settings: Settings
) -> None:
    if variant.name in samples.failures:
        return
    try:
        if case == workloads.START_UP.name:
            values = _start_up(samples, variant, settings, round_index)
        else:
            assert worker is not None
            values = _serve(worker, case, round_index)
            samples.versions[variant.engine.name] = worker.started["version"]
    except WorkerError as error:
        _fail(samples, variant, case, error)
        return
    for metric, value in values.items():
        samples.values[variant.name, case, metric].append(value)
    _say(f"round {round_index + 1} {case:>15} {variant.name:<24} " + ", ".join(f"{v:.4g}" for v in values.values()))


def _fail(samples: Samples, variant: Variant, at: str, error: WorkerError) -> None:
    samples.failures[variant.name] = str(error)
    _say(f"{variant.name} failed at {at}: {error}")


def _serve(worker: Worker, case: str, round_index: int) -> dict[str, float]:
    workload = workloads.CASES[case].workload(round_index)
    worker.run("single", prompt=_WARM_UP, max_tokens=2)  # the caches belong to the engine before it
    if len(workload.prompts) == 1:
        answer = worker.run("single", prompt=workload.prompts[0], max_tokens=workload.max_tokens[0])
        first, total = answer["first_token_seconds"], answer["seconds"]
        if case == workloads.LONG_PROMPT.name:
            return {"prompt": workload.num_prompt_tokens / first}
        return {"first_token": first * 1e3, "decode": (workload.num_output_tokens - 1) / (total - first)}
    answer = worker.run(
        "batch", prompts=workload.prompts, max_tokens=workload.max_tokens, prefix_len=workload.prefix_len
    )
    return {"output": workload.num_output_tokens / answer["seconds"]}


def _start_up(samples: Samples, variant: Variant, settings: Settings, round_index: int) -> dict[str, float]:
    workload = workloads.start_up(round_index)
    with start(variant, settings, _STARTING) as worker:
        answer = worker.run("single", prompt=workload.prompts[0], max_tokens=workload.max_tokens[0])
        samples.versions[variant.engine.name] = worker.started["version"]
    return {
        "import": worker.started["import_seconds"],
        "load_and_first_token": worker.started["load_seconds"] + answer["first_token_seconds"],
        "peak_memory": answer["peak_rss_mb"],
    }


def _measure_limits(target: limits.Limits, variants: list[Variant], settings: Settings) -> None:
    bandwidth = limits.ReadBandwidth()
    step_bytes: dict[str, int] = {}
    for variant in variants:
        weights = weights_of(settings.model(variant))
        # A folder's weights are converted to the number type that is computed with.
        scale = _BYTES[variant.dtype] / _BYTES[weights.precision] if variant.model == "folder" else 1
        step_bytes.setdefault(variant.precision, round(scale * weights.step_bytes))
    for precision, num_bytes in step_bytes.items():
        rate = bandwidth.bytes_per_second(num_bytes, settings.threads)
        target.steps_per_second.setdefault(precision, []).append(rate / num_bytes)
    if settings.folder is not None and any(variant.engine == TRANSFORMERS for variant in variants):
        python = settings.environments.python(TRANSFORMERS)
        target.matmul_seconds.append(limits.matmul_times(python, settings.folder, settings.threads))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which models, which environments, how often."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "paged" / "bench-venvs"
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the model as a Hugging Face folder")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the same model as GGUF")
    parser.add_argument("--venvs", type=Path, default=default, help="folder of the peers' environments (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that medians are taken over (%(default)s)")


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Which workloads, and how many threads each engine computes with."""
    parser.add_argument("--threads", type=int, default=2, help="threads that each engine computes with (%(default)s)")
    parser.add_argument("--cases", nargs="+", choices=workloads.CASES, default=list(workloads.CASES), metavar="CASE")


def settings_from(parser: argparse.ArgumentParser, arguments: argparse.Namespace, threads: int) -> Settings:
    """The settings that the options of `add_options` name."""
    if arguments.model is None and arguments.gguf is None:
        parser.error("give --model FOLDER, --gguf FILE, or both")
    environments = Environments(arguments.venvs.expanduser())
    return Settings(arguments.model, arguments.gguf, environments, threads, arguments.rounds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
