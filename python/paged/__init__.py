# SPDX-License-Identifier: Apache-2.0
"""The embeddable LLM engine: PagedAttention inside your own process.

>>> import paged
>>> with paged.LLM("smollm2-135m") as llm:
...     print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
"""

from paged._C import EngineClosedError, InternalError
from paged.llm import LLM
from paged.outputs import Chunk, Completion, Timings
from paged.sampling import SamplingParams
from paged.stream import Stream

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Chunk",
    "Completion",
    "EngineClosedError",
    "InternalError",
    "SamplingParams",
    "Stream",
    "Timings",
    "__version__",
]
