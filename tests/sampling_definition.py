# SPDX-License-Identifier: Apache-2.0
"""What SamplingParams asks of logits, by its definition in float64, on transformers' logits of the tiny Llama."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

import paged
from tiny_models import tiny_model

VOCAB = 320
PROMPT = [5, 6, 7, 5, 9]
Floats = npt.NDArray[np.float64]


def model_logits(tokens: list[int]) -> Floats:
    """Of the token after `tokens`."""
    return tiny_model("llama").logits(tokens)[-1].double().numpy()


def log_softmax(logits: Floats) -> Floats:
    kept = logits[np.isfinite(logits)]
    return logits - (kept.max() + np.log(np.exp(kept - kept.max()).sum()))


def penalised(logits: Floats, prompt: list[int], answer: list[int], settings: dict[str, Any]) -> Floats:
    """vLLM's order: allowed tokens, bad words, min_tokens, bias, then the three penalties."""
    out = logits.copy()
    if settings.get("allowed_token_ids"):
        forbidden = np.ones(VOCAB, bool)
        forbidden[settings["allowed_token_ids"]] = False
        out[forbidden] = -np.inf
    if len(answer) < settings.get("min_tokens", 0):
        out[list(settings["stop_token_ids"])] = -np.inf
    for token, bias in settings.get("logit_bias", {}).items():
        out[token] += bias
    counts = Counter(answer)
    repetition = settings.get("repetition_penalty", 1.0)
    for token in {*prompt, *answer}:
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token, count in counts.items():
        out[token] -= settings.get("frequency_penalty", 0.0) * count + settings.get("presence_penalty", 0.0)
    return out


def cut(logits: Floats, settings: dict[str, Any]) -> Floats:
    """Temperature, then min_p, top_k and top_p of what is left."""
    out = logits / settings["temperature"]
    out[out < out.max() + np.log(max(settings.get("min_p", 0.0), 1e-300))] = -np.inf
    if settings.get("top_k", 0) > 0:
        out[out < np.sort(out)[-settings["top_k"]]] = -np.inf
    order = np.argsort(-out, kind="stable")
    probabilities = np.exp(log_softmax(out))[order]
    before = np.cumsum(probabilities) - probabilities
    out[order[before >= settings.get("top_p", 1.0)]] = -np.inf
    return out


def values(of_token: dict[int, paged.Logprob]) -> Floats:
    out = np.full(VOCAB, np.nan)
    for token, logprob in of_token.items():
        out[token] = logprob.logprob
    return out


def run(llm: paged.LLM, prompt: list[int] = PROMPT, **settings: Any) -> paged.Completion:
    defaults = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    completion = llm.generate(prompt, paged.SamplingParams(**{**defaults, **settings}))
    assert completion.error is None
    return completion
