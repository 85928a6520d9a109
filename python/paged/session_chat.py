# SPDX-License-Identifier: Apache-2.0
"""Conversations in a session: what new messages append to the tokens that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paged.checks import shown

if TYPE_CHECKING:
    from paged.handle import Handle
    from paged.llm import LLM
    from paged.outputs import Completion
    from paged.tool_use import ToolUse

Message = Mapping[str, Any]

_MARK = "\N{WHITE LARGE SQUARE}answer\N{WHITE LARGE SQUARE}"  # stands for an answer, to see what follows one
_REMEDY = (
    "a session only appends. Begin anew, with the messages as they should be now: messages = session.messages; "
    "session.rewind(0); session.chat([*messages, ...]). What has not changed is found in the cache"
)


@dataclass(frozen=True)
class Conversation:
    """What a session knows of the messages in it.

    Attributes:
        messages: those that were appended and the answers between them, but for the last answer.
        text: of these, as the template writes them, up to where the last answer begins.
        num_tokens: that the session has up to there.
        answer: the last one.
    """

    messages: tuple[Message, ...]
    text: str
    num_tokens: int
    tools: ToolUse | None
    answer: Handle

    def all_messages(self) -> list[Message]:
        """With the last answer, which has finished."""
        return [*self.messages, message_of(self.answer._completion())]


@dataclass(frozen=True)
class NextTurn:
    """What a turn appends, and what the template has then written."""

    messages: tuple[Message, ...]
    text: str
    token_ids: list[int]


def message_of(completion: Completion) -> Message:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.tool_calls:
        message["tool_calls"] = [call.to_dict() for call in completion.tool_calls]
    return message


def begin(llm: LLM, messages: Sequence[Message], tools: ToolUse | None, known: Sequence[int]) -> NextTurn:
    """The first messages of a session that has `known` tokens, with which they must begin.

    Raises:
        ValueError: they do not; or the template refuses them.
    """
    text = _render(llm, messages, tools)
    token_ids = llm.tokenizer.encode(text, add_special_tokens=False)
    same = next((i for i, (a, b) in enumerate(zip(token_ids, known, strict=False)) if a != b), len(known))
    if same < len(known) or len(token_ids) <= len(known):
        raise ValueError(
            f"chat() takes the whole conversation of a session that it has not begun: its tokens must begin with the "
            f"session's {len(known)}, but only {min(same, len(token_ids))} are the same; rewind(0) begins anew"
        )
    return NextTurn(tuple(messages), text, token_ids[len(known) :])


def go_on(llm: LLM, so_far: Conversation, messages: Sequence[Message], tools: ToolUse | None) -> NextTurn:
    """What `messages` add to a conversation whose last answer has finished.

    Raises:
        ValueError: the template writes what is there already in another way, or refuses the messages.
    """
    completion = so_far.answer._completion()
    before = so_far.all_messages()
    answered = _render(llm, before, tools, add_generation_prompt=False)
    text = _render(llm, [*before, *messages], tools)
    _check_kept(so_far.text, answered, "the messages before the last answer")
    _check_kept(answered, text, "the conversation so far")
    if completion.tool_calls:  # which the template may write in a way of its own: the session has what the model wrote
        marked = [*so_far.messages, {"role": "assistant", "content": _MARK}]
        _, found, closing = _render(llm, marked, tools, add_generation_prompt=False).rpartition(_MARK)
        if not found:
            raise ValueError(f"the model's chat template leaves out an assistant's content; {_REMEDY}")
    else:
        closing = _after_answer(completion.text, answered[len(so_far.text) :])
    closing_ids = llm.tokenizer.encode(closing, add_special_tokens=False)
    if completion.token_ids and completion.token_ids[-1] in llm._end_token_ids:  # the model has closed it itself
        ends = [index for index, token in enumerate(closing_ids) if token in llm._end_token_ids]
        closing_ids = closing_ids[ends[0] + 1 :] if ends else closing_ids
    added = llm.tokenizer.encode(text[len(answered) :], add_special_tokens=False)
    return NextTurn((*before, *messages), text, closing_ids + added)


def _render(
    llm: LLM, messages: Sequence[Message], tools: ToolUse | None, add_generation_prompt: bool = True
) -> str:  # fmt: skip
    if tools is None:
        return llm._template().render(messages, add_generation_prompt=add_generation_prompt)
    return tools.render(messages, add_generation_prompt=add_generation_prompt)


def _check_kept(before: str, now: str, what: str) -> None:
    if now.startswith(before):
        return
    at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    raise ValueError(
        f"the model's chat template rewrites {what}: {shown(before[at : at + 30])} becomes "
        f"{shown(now[at : at + 30])}; {_REMEDY}"
    )


def _after_answer(answer: str, written: str) -> str:
    """What the template writes behind an answer; it may strip it."""
    for each in (answer, answer.strip()):
        if written.startswith(each):
            return written[len(each) :]
    lead = len(written) - len(written.lstrip())
    _check_kept(answer.strip(), written.lstrip(), "the last answer")
    return written[lead + len(answer.strip()) :]
