# SPDX-License-Identifier: Apache-2.0
"""Models with quantised weights: what they compute is what their weights in float32 do; batches change no token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import paged
from native_logits import native_logits
from paged.loading.checkpoint import open_checkpoint
from paged.text.tokenizer import load_tokenizer

NAMES = ["smollm2-135m-instruct.gguf", "gemma-3-270m.gguf"]
TEXT = (Path(__file__).parent / "prose.txt").read_text()
NUM_TOKENS = 500
LOGIT_BOUND = 1e-3  # relative to the largest logit, float32 activations as codes of 16 bits
# bfloat16 activations as codes of 8 bits where those are enough: nats that the model's own distribution is away
DIVERGENCE_BOUND = 2e-3


def tokens_of(path: Path, most: int | None = NUM_TOKENS) -> list[int]:
    with open_checkpoint(path) as checkpoint:
        tokenizer = load_tokenizer(path, checkpoint)
    assert tokenizer is not None
    return tokenizer.encode(TEXT)[:most]


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = (logits - logits.max(1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def losses(logits: npt.NDArray[np.float32], token_ids: list[int]) -> npt.NDArray[np.float64]:
    """Negative log probability of each token after the first: the logarithm of the perplexity is their mean."""
    return -np.take_along_axis(log_probabilities(logits)[:-1], np.array(token_ids[1:])[:, None], 1)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_perplexity_are_those_of_the_dequantised_weights(real_models: Mapping[str, Path], name: str) -> None:
    if name not in real_models:
        pytest.skip(f"no {name} among the real models")
    token_ids = tokens_of(real_models[name])
    reference = native_logits(real_models[name], token_ids, dequantised=True)
    logits = native_logits(real_models[name], token_ids)
    exact = losses(reference, token_ids)
    moved = np.expm1((losses(logits, token_ids) - exact).mean())
    error = np.abs(logits - reference).max() / np.abs(reference).max()
    print(f"{name}: perplexity {np.exp(exact.mean()):.3f}, {moved:+.4%}; logits differ by {error:.1e} of the largest")
    assert 0 < error < LOGIT_BOUND
    assert abs(moved) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_activations_stay_close(real_models: Mapping[str, Path], name: str) -> None:
    """What most users run: activations in bfloat16, their codes in 8 bits where those are enough."""
    if name not in real_models:
        pytest.skip(f"no {name} among the real models")
    token_ids = tokens_of(real_models[name], None)
    exact = log_probabilities(native_logits(real_models[name], token_ids, dequantised=True))
    found = log_probabilities(native_logits(real_models[name], token_ids, dtype="bfloat16"))
    divergence = (np.exp(exact) * (exact - found)).sum(1).mean()
    following = np.array(token_ids[1:])[:, None]
    moved = np.expm1(np.take_along_axis(exact[:-1] - found[:-1], following, 1).mean())
    print(f"{name}: perplexity {moved:+.3%}, divergence {divergence:.1e}")
    assert divergence < DIVERGENCE_BOUND
    assert abs(moved) < 5e-3


@pytest.mark.parametrize("name", NAMES)
def test_batches_chunks_and_threads_change_no_token(real_models: Mapping[str, Path], name: str) -> None:
    if name not in real_models:
        pytest.skip(f"no {name} among the real models")
    words = TEXT.split()
    prompts = [" ".join(words[i : i + 5 + i % 17]) for i in range(32)]
    params = paged.SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    sizes = {"kv_cache_bytes": 64 << 20, "max_model_len": 512}
    with paged.LLM(real_models[name], num_threads=2, **sizes) as llm:
        together = [answer.token_ids for answer in llm.generate(prompts, params, use_tqdm=False)]
    with paged.LLM(
        real_models[name], num_threads=1, max_num_sequences=1, max_num_batched_tokens=7,
        enable_prefix_caching=False, **sizes,
    ) as llm:  # fmt: skip
        alone = [llm.generate(prompt, params, use_tqdm=False).token_ids for prompt in prompts[::4]]
    assert together[::4] == alone
