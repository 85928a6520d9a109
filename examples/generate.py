# SPDX-License-Identifier: Apache-2.0
"""Many prompts at once: they share the machine through one engine in this process."""

import paged

prompts = ["The capital of France is", "Water boils at", "def fibonacci(n):"]

with paged.LLM("smollm2-135m") as llm:
    print(llm)
    completions = llm.generate(prompts, paged.SamplingParams(temperature=0.0, max_tokens=24))
    for prompt, completion in zip(prompts, completions, strict=True):
        print(f"{prompt!r} -> {completion.text!r} ({completion.finish_reason})")
