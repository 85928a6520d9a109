# SPDX-License-Identifier: Apache-2.0
"""Answers a dataset of questions with Ray Data: one engine per worker, on one machine or on a cluster.

Needs Ray: pip install 'paged[ray]'.
"""

import ray

import paged
from paged.integrations.ray import generate

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # on a cluster: ray.init()
questions = [f"What is the capital of {name}?" for name in ("France", "Japan", "Peru", "Italy")]
rows = [{"question": question, "prompt": [{"role": "user", "content": question}]} for question in questions]
params = paged.SamplingParams(temperature=0.0, max_tokens=24)
answers = generate(ray.data.from_items(rows), "smollm2-135m", params, workers=2, num_cpus=1, batch_size=2)
for row in answers.iter_rows():
    print(row["question"], row["text"])
