# SPDX-License-Identifier: Apache-2.0
"""A conversation, printed as it comes. The second turn finds the first in the prefix cache."""

import paged

with paged.LLM("smollm2-135m") as llm:
    messages = []
    for question in ["Name three primary colours.", "Which of them is the sky?"]:
        messages.append({"role": "user", "content": question})
        answer = ""
        for chunk in llm.chat(messages, paged.SamplingParams(temperature=0.0, max_tokens=48), stream=True):
            print(chunk.text, end="", flush=True)
            answer += chunk.text
        print()
        messages.append({"role": "assistant", "content": answer})
    print(f"{llm.stats().num_cached_tokens} prompt tokens came from the prefix cache")
