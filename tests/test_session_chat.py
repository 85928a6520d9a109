# SPDX-License-Identifier: Apache-2.0
"""Chats in sessions, on a random model that writes what a grammar demands: the tokens of earlier turns stay, and what
is appended makes of them the text that the template writes of the whole conversation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import paged
from backends import open_llm
from paged import SamplingParams, StructuredOutputsParams
from test_structured_llm import save_with_tokenizer

pytest.importorskip("llguidance", reason="structured output is an extra: pip install 'paged[structured]'")

CHAT = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}"}</tool_call>{% endfor %}</s>\n'
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
# What a model thought is left out as soon as it is history.
FORGETFUL = CHAT.replace("m.content | trim", "(m.content | trim).split('!')[-1]")
TOOLS = [
    {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
]
CALL = '<tool_call>{"name": "look", "arguments": {"at": "hat"}}</tool_call>'


def open_chat(folder: Path, template: str) -> paged.LLM:
    save_with_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return open_llm(folder, "cpu")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[paged.LLM]:
    with open_chat(tmp_path_factory.mktemp("chat"), CHAT) as llm:
        yield llm


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def writing(text: str, **settings: Any) -> SamplingParams:
    """The model writes exactly this."""
    return SamplingParams(**{"max_tokens": 200} | settings, structured_outputs=StructuredOutputsParams(choice=[text]))


def text_of(llm: paged.LLM, session: paged.Session) -> str:
    return llm.tokenizer.decode(session.token_ids, skip_special_tokens=False)


def test_the_session_has_what_the_template_writes(llm: paged.LLM) -> None:
    messages = [{"role": "system", "content": "be brief"}, user("the cat")]
    with llm.session() as session:
        for answer in ("the hat", "a cat", "  "):
            before = session.token_ids
            completion = session.chat(messages[-2:] if answer == "the hat" else messages[-1:], writing(answer))
            assert completion.text == answer and completion.finish_reason == "stop"
            assert session.token_ids[: len(before)] == before, "what was there stays"
            messages.append({"role": "assistant", "content": answer})
            assert session.messages == messages
            messages.append(user(f"and the {answer}?"))
        completion = session.chat(messages[-1:], SamplingParams(max_tokens=1))
        # The template strips answers, the session keeps what was written.
        expected = llm.tokenizer.decode(llm.render_chat(messages), skip_special_tokens=False)
        assert text_of(llm, session).startswith(expected.replace("assistant: </s>", "assistant:   </s>"))
        assert completion.num_cached_tokens > 0


def test_an_answer_cut_off_is_closed_by_the_template(llm: paged.LLM) -> None:
    with llm.session() as session:
        completion = session.chat([user("the cat")], writing("the hat and the cat", max_tokens=3))
        assert completion.finish_reason == "length"
        session.chat([user("go on")], writing("a"))
        expected = f"user: the cat</s>\nassistant: {completion.text}</s>\nuser: go on</s>\nassistant: a"
        assert text_of(llm, session) == expected


def test_an_answer_that_the_model_has_closed_is_not_closed_again(llm: paged.LLM) -> None:
    wanted = [*llm.tokenizer.encode("the hat"), 2]

    def write(token_ids: list[int], logits: Any) -> Any:
        logits[wanted[len(token_ids)]] = 1e6
        return logits

    with llm.session() as session:
        completion = session.chat([user("the cat")], SamplingParams(temperature=0.0, logits_processors=[write]))
        assert completion.token_ids == wanted and completion.finish_reason == "stop"
        session.chat([user("b")], writing("a"))
        assert text_of(llm, session) == "user: the cat</s>\nassistant: the hat</s>\nuser: b</s>\nassistant: a"


def test_streams_and_tools(llm: paged.LLM) -> None:
    with llm.session() as session:
        handle = session.chat([user("the cat")], writing(f"look\n{CALL}"), tools=TOOLS, stream=True)
        chunks = list(handle)
        (call,) = handle.result().tool_calls
        assert "".join(chunk.text for chunk in chunks) == "look"
        assert [c for chunk in chunks for c in chunk.tool_calls] == [call] and call.arguments == {"at": "hat"}
        assert session.pause("look", 0.1).status == "accepted"
        result = {"role": "tool", "name": "look", "tool_call_id": call.id, "content": "a rat"}
        answer = session.chat([result], writing(CALL))  # the tools are still offered
        assert [c.name for c in answer.tool_calls] == ["look"] and answer.text == ""
        assert [m["role"] for m in session.messages] == ["user", "assistant", "tool", "assistant"]
        shown = text_of(llm, session)
        assert shown.endswith(f"assistant: look\n{CALL}</s>\ntool: a rat</s>\nassistant: {CALL}")
        with pytest.raises(ValueError, match="rewrites the messages before"):
            session.chat([user("x")], writing("a"), tools=[{**TOOLS[0], "name": "hear"}])


def test_a_template_that_rewrites_is_refused_and_the_way_on_works(tmp_path: Path) -> None:
    with open_chat(tmp_path, FORGETFUL) as llm, llm.session() as session:
        session.chat([user("the cat")], writing("think ! the hat"))
        before = session.token_ids
        with pytest.raises(ValueError, match=r"rewrites the last answer.*session\.rewind\(0\)"):
            session.chat([user("and?")], writing("a"))
        assert session.token_ids == before, "nothing has happened"
        messages = [*session.messages, user("and?")]
        session.rewind(0)
        assert session.messages == []
        session.chat(messages, writing("a"))
        assert text_of(llm, session) == "user: the cat</s>\nassistant:  the hat</s>\nuser: and?</s>\nassistant: a"
        session.chat([user("so?")], writing("a"))


def test_after_other_tokens_a_chat_takes_the_whole_conversation(llm: paged.LLM) -> None:
    system = {"role": "system", "content": "be brief and kind to the cat"}
    known = llm.render_chat([system], add_generation_prompt=False)
    with llm.prefix(known) as base, llm.session(parent=base) as session, llm.session(parent=base) as other:
        with pytest.raises(ValueError, match="whole conversation"):
            session.chat([user("the cat")], writing("a"))
        session.chat([system, user("the cat")], writing("a"))
        assert session.token_ids[: len(known)] == known
        fork = session.fork()
        for each in (session, fork):
            each.chat([user("b")], writing("a"))
        assert session.token_ids == fork.token_ids
        other.generate("x", writing("a"))
        with pytest.raises(ValueError, match="whole conversation"):
            other.chat([user("b")], writing("a"))
        session.append("more")
        assert session.messages == []


def test_a_refused_turn_leaves_the_conversation(llm: paged.LLM) -> None:
    with llm.session() as session:
        session.chat([user("the cat")], writing("a"))
        with pytest.raises(ValueError, match="max_tokens"):
            session.chat([user("x")], SamplingParams(max_tokens=-1))
        with pytest.raises(ValueError, match="at most"):
            session.chat([user("x" * 5000)], writing("a"))
        session.chat([user("b")], writing("a"))
        assert len(session.messages) == 4


def test_asynchronously(llm: paged.LLM) -> None:
    async def talk() -> tuple[list[Mapping[str, Any]], str]:
        async with await paged.AsyncLLM(llm).session() as session:
            await session.chat([user("the cat")], writing("a"))
            chunks = [c.text async for c in await session.chat([user("b")], writing("the hat"), stream=True)]
            return list(await session.messages()), "".join(chunks)

    messages, streamed = asyncio.run(talk())
    assert streamed == "the hat" and [m["content"] for m in messages] == ["the cat", "a", "b", "the hat"]
