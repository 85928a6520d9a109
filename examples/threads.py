# SPDX-License-Identifier: Apache-2.0
"""One engine, many threads: requests of all of them run in the same steps."""

from concurrent.futures import ThreadPoolExecutor

import paged

with paged.LLM("smollm2-135m") as llm, ThreadPoolExecutor(8) as pool:
    params = paged.SamplingParams(temperature=0.8, seed=1, max_tokens=16)
    questions = [f"Write a word that rhymes with {word}:" for word in ["cat", "moon", "tree", "stone"]]
    completions = pool.map(lambda question: llm.generate(question, params), questions)
    for question, completion in zip(questions, completions, strict=True):
        print(f"{question} {completion.text.strip()!r}")
