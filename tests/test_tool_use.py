# SPDX-License-Identifier: Apache-2.0
"""Chats with tools through the engine: a grammar makes a random model write calls, which come back as objects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import paged
from backends import open_llm
from paged import SamplingParams, StructuredOutputsParams, ToolCall
from test_structured_llm import save_with_tokenizer

pytest.importorskip("llguidance", reason="structured output is an extra: pip install 'paged[structured]'")

TOOLS = [
    {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
]
MESSAGES = [{"role": "user", "content": "the cat"}]
HERMES = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}<tool_call>"
MISTRAL = "[AVAILABLE_TOOLS]{{ tools | tojson }}{{ messages[0].content }}[TOOL_CALLS]"
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }} {{ m.content }}{% endfor %}"


def _open(folder: Path, template: str | None) -> paged.LLM:
    save_with_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return open_llm(folder, "cpu")


def _writing(text: str, **settings: Any) -> SamplingParams:
    """The model writes exactly this."""
    return SamplingParams(max_tokens=200, structured_outputs=StructuredOutputsParams(choice=[text]), **settings)


CALL = '<tool_call>{"name": "look", "arguments": {"at": "hat"}}</tool_call>'


def test_calls_and_text_come_apart(tmp_path: Path) -> None:
    with _open(tmp_path, HERMES) as llm:
        params = _writing(f"the hat\n{CALL}\n{CALL}")
        answer = llm.chat(MESSAGES, params, tools=TOOLS)
        assert answer.text == "the hat" and answer.finish_reason == "stop"
        assert [(call.name, call.arguments) for call in answer.tool_calls] == [("look", {"at": "hat"})] * 2
        assert answer.tool_calls[0].id != answer.tool_calls[1].id
        handle = llm.chat(MESSAGES, params, tools=TOOLS, stream=True)
        chunks = list(handle)
        assert "".join(chunk.text for chunk in chunks) == "the hat"
        assert [call for chunk in chunks for call in chunk.tool_calls] == handle.result().tool_calls
        assert llm.chat(MESSAGES, params).text == f"the hat\n{CALL}\n{CALL}"  # without tools it is text


def test_the_template_shows_the_tools(tmp_path: Path) -> None:
    with _open(tmp_path, HERMES) as llm:
        shown = llm.tokenizer.decode(llm.render_chat(MESSAGES, TOOLS))
    assert json.loads(shown[: shown.index("the cat")]) == [{"type": "function", "function": TOOLS[0]}]


def test_asynchronously(tmp_path: Path) -> None:
    async def chat(llm: paged.LLM) -> tuple[paged.Completion, list[ToolCall]]:
        engine = paged.AsyncLLM(llm)
        answer = await engine.chat(MESSAGES, _writing(CALL), tools=TOOLS)
        handle = await engine.chat(MESSAGES, _writing(CALL), tools=TOOLS, stream=True)
        return answer, [call async for chunk in handle for call in chunk.tool_calls]

    with _open(tmp_path, HERMES) as llm:
        answer, streamed = asyncio.run(chat(llm))
    assert [call.arguments for call in (*answer.tool_calls, *streamed)] == [{"at": "hat"}] * 2


def test_gemma_is_told_in_a_system_message(tmp_path: Path) -> None:
    with _open(tmp_path, GEMMA) as llm:
        system = {"role": "system", "content": "be brief"}
        assert llm.chat(MESSAGES, _writing("[look(at='hat')]"), tools=TOOLS).tool_calls[0].arguments == {"at": "hat"}
        shown = llm.tokenizer.decode(llm.render_chat([system, *MESSAGES], TOOLS))
    assert shown.count("<start_of_turn>system") == 1 and '"name": "look"' in shown and "be brief" in shown


def test_markers_that_are_special_tokens(tmp_path: Path) -> None:
    """Mistral's: the engine's text leaves special tokens out, the tokens have them."""
    save_with_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    added = {"id": 315, "content": "[TOOL_CALLS]", "special": True, "normalized": False}
    content["added_tokens"].append(added | {"single_word": False, "lstrip": False, "rstrip": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text(MISTRAL)
    with open_llm(tmp_path, "cpu") as llm:
        call = llm.tokenizer.encode('[TOOL_CALLS][{"name": "look", "arguments": {"at": "é"}}]')
        assert llm.tokenizer.token_bytes().is_special[call[0]]
        wanted = [*llm.tokenizer.encode("hat "), *call]

        def write(token_ids: list[int], logits: Any) -> Any:
            logits[wanted[len(token_ids)] if len(token_ids) < len(wanted) else 2] = 1e6
            return logits

        params = SamplingParams(max_tokens=200, temperature=0.0, logits_processors=[write])
        chunks = list(llm.chat(MESSAGES, params, tools=TOOLS, stream=True))
        answer = llm.chat(MESSAGES, params, tools=TOOLS)
        assert answer.text == "hat" == "".join(chunk.text for chunk in chunks)
        assert [call.arguments for call in answer.tool_calls] == [{"at": "é"}]
        assert [call.arguments for chunk in chunks for call in chunk.tool_calls] == [{"at": "é"}]
        with pytest.raises(ValueError, match="stop strings cannot"):
            llm.chat(MESSAGES, SamplingParams(stop="x"), tools=TOOLS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ messages[0].content }}", "no place for tools"),
        ("{{ tools }}", "a form of its own"),
    ],
)
def test_models_that_do_not_know_tools_say_so(tmp_path: Path, template: str | None, message: str) -> None:
    with _open(tmp_path, template) as llm, pytest.raises(ValueError, match=message):
        llm.chat(MESSAGES, tools=TOOLS)


def test_a_real_model_without_tools_says_so(real_models: Mapping[str, Path]) -> None:
    with (
        paged.LLM(real_models["smollm2-135m-instruct.gguf"]) as llm,
        pytest.raises(ValueError, match="no place for tools"),
    ):
        llm.chat(MESSAGES, tools=TOOLS)


def test_each_of_several_answers_has_its_calls(tmp_path: Path) -> None:
    with _open(tmp_path, HERMES) as llm:
        answer = llm.chat(MESSAGES, _writing(f"the hat\n{CALL}", n=2, seed=1), tools=TOOLS)
        assert [output.text for output in answer.outputs] == ["the hat"] * 2
        assert [[call.name for call in output.tool_calls] for output in answer.outputs] == [["look"]] * 2
