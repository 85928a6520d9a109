# SPDX-License-Identifier: Apache-2.0
"""Real models: logits and greedy tokens are those of transformers on the same (dequantised) weights in float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paged
from native_logits import native_logits

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The three laws of thermodynamics are:\n1.",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die Hauptstadt von Deutschland ist",
]
NAMES = ["smollm2-135m-instruct", "gemma-3-270m"]
NEAR_TIE = 2e-3  # of logits: which of two that close is chosen is a matter of rounding


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, real_models: Mapping[str, Path]) -> tuple[str, Path, Any]:
    """(name, GGUF file, transformers' model of its dequantised weights)."""
    from transformers import AutoModelForCausalLM

    path = real_models[f"{request.param}.gguf"]
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    reference.config.rms_norm_eps = float(f"{reference.config.rms_norm_eps:.6g}")
    return request.param, path, reference.eval()


@pytest.fixture(scope="module")
def llm(model: tuple[str, Path, Any]) -> Any:
    with paged.LLM(model[1], dtype="float32", kv_cache_bytes=256 << 20, max_model_len=2048) as llm:
        yield llm


def logits_of(reference: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return reference(torch.tensor([token_ids])).logits[0]


def test_greedy_tokens_equal_over_64_tokens(model: tuple[str, Path, Any], llm: paged.LLM) -> None:
    name, _, reference = model
    prompts = [llm.tokenizer.encode(text) for text in PROMPTS]
    params = paged.SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    outputs = [completion.token_ids for completion in llm.generate(prompts, params, use_tqdm=False)]
    for prompt, output in zip(prompts, outputs, strict=True):
        logits = logits_of(reference, prompt + output)[len(prompt) - 1 : -1]
        margin = logits.max(dim=1).values - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert len(output) == 64
        if margin.max() > 0:
            print(f"{name}: near-tie at token {int(margin.argmax())}, margin {margin.max():.1e}")
        assert margin.max() < NEAR_TIE


@pytest.mark.parametrize("text", PROMPTS)
def test_logits_equal_within_1e_4(model: tuple[str, Path, Any], llm: paged.LLM, text: str) -> None:
    """Of the dequantised weights (test_quantised_models has the others). Or, where transformers' own float32 logits are
    that far from its float64 ones, within four times that."""
    _, path, reference = model
    token_ids = llm.tokenizer.encode(text)
    expected = logits_of(reference, token_ids)
    difference = np.abs(native_logits(path, token_ids, dequantised=True) - expected.numpy()).max()
    if difference >= 1e-4:
        exact = logits_of(copy.deepcopy(reference).double(), token_ids)
        rounding = float((expected - exact).abs().max())
        print(f"{text!r}: {difference:.1e} from transformers, which is {rounding:.1e} from its float64 self")
        assert difference < 4 * rounding


def test_text_is_what_the_tokens_decode_to(llm: paged.LLM) -> None:
    params = paged.SamplingParams(temperature=1.5, seed=3, max_tokens=200, ignore_eos=True)
    prompt = llm.tokenizer.encode("A poem with many emoji: ")
    chunks = list(llm.stream(prompt, params))
    text = "".join(chunk.text for chunk in chunks)
    token_ids = [token for chunk in chunks for token in chunk.token_ids]
    assert text == llm.tokenizer.decode(prompt + token_ids).removeprefix(llm.tokenizer.decode(prompt))
    assert llm.generate(prompt, params).text == text


def test_stop_strings_cut_the_text(llm: paged.LLM) -> None:
    free = llm.generate(PROMPTS[1], paged.SamplingParams(temperature=0.0, max_tokens=64)).text
    stop = free[20:25]
    params = paged.SamplingParams(temperature=0.0, max_tokens=64, stop=[stop, "never in the text"])
    stopped = llm.generate(PROMPTS[1], params)
    assert stopped.finish_reason == "stop"
    assert stopped.text == free[: free.index(stop)]
    assert "".join(chunk.text for chunk in llm.stream(PROMPTS[1], params)) == stopped.text


def test_chat_answers_and_reuses_the_conversation(real_models: Mapping[str, Path]) -> None:
    with paged.LLM(real_models["smollm2-135m-instruct.gguf"], kv_cache_bytes=64 << 20, max_model_len=2048) as llm:
        params = paged.SamplingParams(temperature=0.0, max_tokens=48)
        messages = [{"role": "user", "content": "What is the capital of Japan?"}]
        first = llm.chat(messages, params)
        assert "Tokyo" in first.text and first.finish_reason == "stop"
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
        assert llm.chat(messages, params).num_cached_tokens >= first.num_prompt_tokens // 16 * 16
