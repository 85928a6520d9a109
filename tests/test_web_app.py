# SPDX-License-Identifier: Apache-2.0
"""The engine inside a web application: examples/fastapi_app.py behind a real server on a thread of this process."""

from __future__ import annotations

import http.client
import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install 'paged[test]'")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'paged[test]'")

import paged  # noqa: E402

EXAMPLE = Path(__file__).parent.parent / "examples" / "fastapi_app.py"


class Site:
    def __init__(self, app: Any, port: int) -> None:
        self.llm: paged.LLM = app.state.llm.llm
        self._port = port

    def request(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        """The response, of which the head has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse()


@pytest.fixture(scope="module")
def site(real_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "smollm2-135m-instruct.gguf").symlink_to(real_models["smollm2-135m-instruct.gguf"].resolve())
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAGED_CACHE", str(cache))
        server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive())
        site = Site(module.app, server.servers[0].sockets[0].getsockname()[1])
        yield site
        server.should_exit = True
        thread.join()
        assert site.llm.closed


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.01)


def test_answers_of_many_clients_are_those_of_the_engine(site: Site) -> None:
    questions = [f"What is the capital of {name}?" for name in ("France", "Italy", "Spain", "Japan")] * 3
    params = paged.SamplingParams(temperature=0.0, max_tokens=24)
    expected = [site.llm.chat([{"role": "user", "content": question}], params).text for question in questions]

    def ask(question: str) -> str:
        response = site.request("POST", "/chat", {"question": question, "max_tokens": 24})
        assert response.status == 200
        return response.read().decode()

    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(ask, questions)) == expected


def test_text_comes_while_the_request_runs_and_hanging_up_cancels_it(site: Site) -> None:
    before = site.llm.stats()
    response = site.request("POST", "/chat", {"question": "Tell me a long story.", "max_tokens": 4000})
    assert response.read1(1 << 16) != b""
    assert site.llm.stats().num_finished == before.num_finished
    response.close()
    wait_until(lambda: site.llm.stats().num_finished > before.num_finished)
    assert site.llm.stats().num_cancelled == before.num_cancelled + 1
    assert site.llm.stats().num_used_blocks == 0


def test_a_bad_request_is_the_clients_and_says_why(site: Site) -> None:
    for body, reason in (({"question": "a", "max_tokens": 0}, "max_tokens"), ({"question": "a " * 9000}, "8192")):
        response = site.request("POST", "/chat", body)
        assert response.status == 422
        assert reason in json.loads(response.read())["detail"]


def test_metrics(site: Site) -> None:
    text = site.request("GET", "/metrics").read().decode()
    assert "paged_requests_running 0" in text
