# SPDX-License-Identifier: Apache-2.0
"""The evaluation harness gives the same results with this engine as with its own `hf` model, on local data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="the harness is not installed: pip install lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import paged  # noqa: E402
from paged.integrations.lm_eval import PagedLM  # noqa: E402
from test_structured_llm import save_with_tokenizer  # noqa: E402

WORDS = [
    "the",
    "cat",
    "and",
    "hat",
    "sat",
    "on",
    "a",
    "mat",
    "with",
    "Ada",
    "Bob",
    "who",
    "are",
    "22",
    "1",
    "years",
    "old",
]
MAX_LENGTH = 96
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs:
  cache_dir: "{folder}/cache"
  data_files: {{train: "{folder}/choice.jsonl", test: "{folder}/choice.jsonl"}}
output_type: multiple_choice
fewshot_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{cache_dir: "{folder}/cache", data_files: {{test: "{folder}/text.jsonl"}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {{cache_dir: "{folder}/cache", data_files: {{test: "{folder}/choice.jsonl"}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["a", "t"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


def text(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, count).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_with_tokenizer(tmp_path_factory.mktemp("llama"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    choices = [
        {
            "question": text(rng, int(rng.integers(1, 12))) + ":",
            "choices": [text(rng, int(rng.integers(1, 4))) for _ in range(3)],
            "answer": int(rng.integers(3)),
        }
        for _ in range(12)
    ]
    (folder / "choice.jsonl").write_text("\n".join(map(json.dumps, choices)))
    # Texts of a few tokens and of several windows.
    texts = [{"text": text(rng, count)} for count in (1, 5, 40, 150)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, task in (("choice", CHOICE), ("rolling", ROLLING), ("generate", GENERATE)):
        (tasks / f"{name}.yaml").write_text(task.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[tuple[Any, Any]]:
    with paged.LLM(folder, dtype="float32", kv_cache_bytes=16 << 20, max_model_len=MAX_LENGTH + 1) as llm:
        theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=MAX_LENGTH)
        yield PagedLM(llm, use_tqdm=False), theirs


def evaluate(model: Any, folder: Path, task: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0, log_samples=True, **options,
    )  # fmt: skip
    return found


def answers(results: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])]


@pytest.mark.parametrize(("task", "num_fewshot"), [("local_choice", 0), ("local_choice", 2), ("local_rolling", 0)])
def test_likelihoods_are_those_of_the_harness(
    models: tuple[Any, Any], folder: Path, task: str, num_fewshot: int
) -> None:
    """Questions with two shots before them are too long for the model, and cut off at their beginning."""
    ours, theirs = (evaluate(model, folder, task, num_fewshot=num_fewshot) for model in models)
    for metric, expected in theirs["results"][task].items():
        if isinstance(expected, float):
            assert ours["results"][task][metric] == pytest.approx(expected, rel=1e-4), metric
    found, expected = (np.array(answers(results, task), dtype=object) for results in (ours, theirs))
    assert found.shape == expected.shape and found.size > 0
    np.testing.assert_allclose(
        found[..., 0].astype(float) if task == "local_choice" else found.astype(float),
        expected[..., 0].astype(float) if task == "local_choice" else expected.astype(float),
        atol=2e-3, rtol=1e-5,
    )  # fmt: skip
    if task == "local_choice":
        assert (found[..., 1].astype(str) == expected[..., 1].astype(str)).all()


def test_generated_texts_are_those_of_the_harness(models: tuple[Any, Any], folder: Path) -> None:
    ours, theirs = (evaluate(model, folder, "local_generate") for model in models)
    assert answers(ours, "local_generate") == answers(theirs, "local_generate")
    assert len({str(answer) for answer in answers(ours, "local_generate")}) > 1


def test_what_cannot_be_done_is_said(models: tuple[Any, Any]) -> None:
    ours, _ = models
    with pytest.raises(ValueError, match=r"\['num_beams'\] have no counterpart"):
        ours._sampling_params({"num_beams": 3})
    with pytest.raises(ValueError, match="a continuation of 200 tokens does not fit"):
        ours._loglikelihood_tokens([(None, [1], [5] * 200)])
    with pytest.raises(TypeError, match="PagedLM takes an LLM"):
        PagedLM("smollm2-135m")
    settings = ours._sampling_params({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3})
    assert (settings.temperature, settings.top_p, settings.max_tokens) == (0.7, 0.9, 3)
    assert ours._sampling_params({"do_sample": False, "temperature": 0.7, "until": "x"}).temperature == 0.0
