# SPDX-License-Identifier: Apache-2.0
"""The embeddable LLM engine: PagedAttention inside your own process.

>>> import paged
>>> with paged.LLM("smollm2-135m") as llm:
...     print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
"""

from paged._C import EngineClosedError, InternalError
from paged.async_llm import AsyncLLM
from paged.async_session import AsyncSession
from paged.beams import Beam, BeamSearchParams, beam_search
from paged.handle import Handle
from paged.llm import LLM
from paged.metrics import Stats
from paged.outputs import Chunk, Completion, Logprob, RequestError, Timings
from paged.policy import Policy, Pressure, SessionView, Worth
from paged.prefix import Prefix
from paged.receipts import Explanation, Miss, Receipt, Tenant
from paged.sampling import SamplingParams
from paged.scoring import Score
from paged.session import Session
from paged.structured import StructuredOutputsParams
from paged.text.tool_calls import ToolCall

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncSession",
    "Beam",
    "BeamSearchParams",
    "Chunk",
    "Completion",
    "EngineClosedError",
    "Explanation",
    "Handle",
    "InternalError",
    "Logprob",
    "Miss",
    "Policy",
    "Prefix",
    "Pressure",
    "Receipt",
    "RequestError",
    "SamplingParams",
    "Score",
    "Session",
    "SessionView",
    "Stats",
    "StructuredOutputsParams",
    "Tenant",
    "Timings",
    "ToolCall",
    "Worth",
    "__version__",
    "beam_search",
]
