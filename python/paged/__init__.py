# SPDX-License-Identifier: Apache-2.0
"""The embeddable LLM engine: PagedAttention inside your own process.

>>> import paged
>>> with paged.LLM("smollm2-135m") as llm:
...     print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)
"""

import importlib
from typing import TYPE_CHECKING, Any

from paged._C import EngineClosedError, InternalError
from paged.handle import Handle
from paged.llm import LLM
from paged.outputs import Chunk, Completion, Logprob, RequestError, Timings
from paged.sampling import SamplingParams
from paged.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from paged.async_llm import AsyncLLM
    from paged.async_session import AsyncSession
    from paged.beams import Beam, BeamSearchParams, beam_search
    from paged.metrics import Stats
    from paged.policy import Policy, Pressure, SessionView, Worth
    from paged.prefix import Prefix
    from paged.receipts import Explanation, Miss, Receipt, Tenant
    from paged.scoring import Score
    from paged.session import Session
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

# What a program may well do without is imported when it is named.
_LATE = {
    "AsyncLLM": "async_llm",
    "AsyncSession": "async_session",
    "Beam": "beams",
    "BeamSearchParams": "beams",
    "Explanation": "receipts",
    "Miss": "receipts",
    "Policy": "policy",
    "Prefix": "prefix",
    "Pressure": "policy",
    "Receipt": "receipts",
    "Score": "scoring",
    "Session": "session",
    "SessionView": "policy",
    "Stats": "metrics",
    "Tenant": "receipts",
    "ToolCall": "text.tool_calls",
    "Worth": "policy",
    "beam_search": "beams",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LATE.keys())
