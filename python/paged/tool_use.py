# SPDX-License-Identifier: Apache-2.0
"""Conversations with tools: the prompt that offers them and the handle that finds the calls in the answer."""

from __future__ import annotations

import codecs
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paged.handle import Handle
from paged.outputs import Chunk, Completion
from paged.sampling import SamplingParams
from paged.text.chat import ChatTemplate
from paged.text.tokenizer import Tokenizer
from paged.text.tool_calls import FORMATS, ToolCall, format_of_template, gemma_instructions, new_call_id, plain_tools
from paged.text.tool_parser import Piece, ToolCallParser


class ToolUse:
    """The tools of one answer, and how this model writes calls."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], template: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Raises TypeError, ValueError: a tool that is none, or a model that does not know tools."""
        self._tools = plain_tools(tools)
        self._template = template
        self._tokenizer = tokenizer
        format = format_of_template(template.text)
        if format is None or not (template.takes_tools or format is FORMATS["gemma"]):
            known = ", ".join(FORMATS)
            found = "has a form of its own for tools" if template.takes_tools else "has no place for tools"
            raise ValueError(
                f"this model's chat template {found}; known are those of {known}. Describe the tools in a system "
                "message instead, and read the calls from the text"
            )
        self._format = format
        table = tokenizer.token_bytes()
        special = [int(token) for token in table.is_special.nonzero()[0]]
        wanted = [word.encode() for word in (*format.markers, "[ARGS]", "[CALL_ID]") if format.markers]
        self._marker_bytes = {token: table[token] for token in special if table[token] in wanted}

    @property
    def hides_markers(self) -> bool:
        """The markers are special tokens, which the engine's text leaves out."""
        return bool(self._marker_bytes)

    def check(self, params: SamplingParams | None) -> None:
        """Raises ValueError: they do not go with this model's calls."""
        if self.hides_markers and params is not None and params.stop:
            raise ValueError("stop strings cannot be used with this model's tool calls: their marks are special tokens")

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt: the template's own section for tools, for Gemma 3 a system message."""
        if self._template.takes_tools:
            return self._template.render(messages, add_generation_prompt, tools=self._tools)
        system, rest = "", list(messages)
        if rest and rest[0].get("role") == "system" and isinstance(rest[0].get("content"), str):
            system = "\n\n" + rest.pop(0)["content"]
        instructions = {"role": "system", "content": gemma_instructions(self._tools) + system}
        return self._template.render([instructions, *rest], add_generation_prompt)

    def reader(self, new_id: Callable[[], str]) -> AnswerReader:
        names = [tool["function"]["name"] for tool in self._tools]
        parser = ToolCallParser(self._format, names, new_id=new_id)
        return AnswerReader(parser, self._tokenizer if self.hides_markers else None, self._marker_bytes)


class AnswerReader:
    """Text and calls of an answer that comes in chunks."""

    def __init__(self, parser: ToolCallParser, tokenizer: Tokenizer | None, marker_bytes: Mapping[int, bytes]) -> None:
        """`tokenizer`: if the text must be made from the tokens, to have the markers in it."""
        self._parser = parser
        self._table = None if tokenizer is None else tokenizer.token_bytes()
        self._marker_bytes = marker_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, text: str, token_ids: Sequence[int], final: bool) -> tuple[str, list[ToolCall]]:
        if self._table is not None:
            text = self._decoder.decode(b"".join(map(self._bytes, token_ids)), final)
        pieces: list[Piece] = self._parser.feed(text) + (self._parser.finish() if final else [])
        calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
        return "".join(piece for piece in pieces if isinstance(piece, str)), calls

    def _bytes(self, token: int) -> bytes:
        assert self._table is not None
        if token >= len(self._table) or self._table.is_special[token]:
            return self._marker_bytes.get(token, b"")
        return self._table[token]


class ToolHandle(Handle):
    """A `Handle` whose chunks and completion have the calls as `tool_calls`, and as text what is outside of them."""

    def __init__(self, use: ToolUse, *arguments: Any) -> None:
        self._use = use
        self._ids: list[str] = []  # of calls that came without one: the same in chunks and completion
        self._reader = use.reader(self._numbered_ids())
        self._reading = threading.Lock()
        super().__init__(*arguments)

    def _take(self) -> Chunk:
        with self._reading:
            chunk = super()._take()
            text, calls = self._reader.read(chunk.text, chunk.token_ids, final=chunk.finish_reason is not None)
        return dataclasses.replace(chunk, text=text, tool_calls=calls)

    def _completion(self) -> Completion:
        completion = super()._completion()
        reader = self._use.reader(self._numbered_ids())
        text, calls = reader.read(completion.text, completion.token_ids, final=True)
        return dataclasses.replace(completion, text=text, tool_calls=calls)

    def _numbered_ids(self) -> Callable[[], str]:
        count = 0

        def next_id() -> str:
            nonlocal count
            while len(self._ids) <= count:
                self._ids.append(new_call_id())
            count += 1
            return self._ids[count - 1]

        return next_id
