# SPDX-License-Identifier: Apache-2.0
"""A web application that streams answers. The engine lives in its process; a client that hangs up cancels its request.

Needs FastAPI and uvicorn: pip install fastapi uvicorn.

    python examples/fastapi_app.py
    curl -N localhost:8000/chat -H 'content-type: application/json' -d '{"question": "Why is the sky blue?"}'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

import paged
from paged.metrics import prometheus_text


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with await paged.AsyncLLM.open("smollm2-135m") as llm:
        app.state.llm = llm
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    question: str
    max_tokens: int = 128


@app.post("/chat")
async def chat(asked: Question) -> StreamingResponse:
    messages = [{"role": "user", "content": asked.question}]
    try:
        params = paged.SamplingParams(temperature=0.0, max_tokens=asked.max_tokens)
        handle = await app.state.llm.chat(messages, params, stream=True)
    except ValueError as error:  # a question that is too long, a max_tokens of 0: says what arrived and what is allowed
        raise HTTPException(422, str(error)) from error
    return StreamingResponse(texts(handle), media_type="text/plain")


async def texts(handle: paged.Handle) -> AsyncIterator[str]:
    async with handle:  # left early when the client hangs up: that cancels the request
        async for chunk in handle:
            yield chunk.text


@app.get("/metrics")
async def metrics() -> PlainTextResponse:
    return PlainTextResponse(prometheus_text(app.state.llm.llm))


if __name__ == "__main__":
    uvicorn.run(app)
