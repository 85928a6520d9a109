# SPDX-License-Identifier: Apache-2.0
"""Conversations to prompts, through the template that comes with a model.

A template is code from a stranger: it runs in Jinja's immutable sandbox, sees plain data only, and its work and output
are bounded. It has what Hugging Face's templates expect (transformers, utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged.loading.checkpoint import Checkpoint
from paged.loading.errors import CheckpointError
from paged.loading.model_folder import file_in, read_json

if TYPE_CHECKING:
    from jinja2 import Template

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_TEMPLATE_CHARACTERS = 1 << 17  # compiling takes some 10 us and 2 KB for each
_MAX_OUTPUT_CHARACTERS = 1 << 26


class ChatTemplateError(ValueError):
    """A chat template is broken or refuses the conversation; the text has the template's own words."""


class ChatTemplate:
    """One template, compiled when it is first rendered. Immutable; safe to use from any thread."""

    def __init__(self, text: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """
        Args:
            text: the Jinja source.
            special_tokens: what templates know by name: bos_token, eos_token, ...
        Raises:
            ChatTemplateError: it is too long.
        """
        if len(text) > _MAX_TEMPLATE_CHARACTERS:
            raise ChatTemplateError(
                f"expected a chat template of at most {_MAX_TEMPLATE_CHARACTERS} characters, found {len(text)}"
            )
        self.text = text
        self._special_tokens = dict(special_tokens or {})

    @cached_property
    def _template(self) -> Template:
        return _compile(self.text)

    @property
    def takes_tools(self) -> bool:
        """Whether the template says anything about tools."""
        from jinja2.meta import find_undeclared_variables

        from paged.text.chat_environment import environment

        return "tools" in find_undeclared_variables(environment().parse(self.text))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation. Encode it with add_special_tokens=False: it has them.

        Args:
            messages: `{"role": ..., "content": ...}` each, of plain data.
            add_generation_prompt: end where the assistant's answer begins.
            tools: JSON schemas of functions, for templates that know them.
            variables: more names for the template, such as enable_thinking.
        Raises:
            TypeError: what is passed is not plain data. ChatTemplateError: the template is not valid, refuses or fails.
        """
        data = _plain({"messages": list(messages), "tools": tools and list(tools), **(variables or {})})
        for message in data["messages"]:
            if not isinstance(message, dict):
                raise TypeError(f"a message must be a dict with role and content, got {type(message).__name__}")
        from paged.text.template_budget import KEY, Budget

        context = self._special_tokens | data | {"add_generation_prompt": add_generation_prompt, KEY: Budget(data)}
        return _render(self._template, context)


def _compile(text: str) -> Template:
    from jinja2.exceptions import TemplateSyntaxError

    from paged.text.chat_environment import environment

    try:
        return environment().from_string(text)
    except Exception as error:  # beside jinja2's, what compiling nested Python raises: SyntaxError, RecursionError, ...
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ChatTemplateError(f"the model's chat template is not valid Jinja{line}: {error}") from error


def _render(template: Template, context: dict[str, Any]) -> str:
    parts = []
    left = _MAX_OUTPUT_CHARACTERS
    try:
        for part in template.generate(context):
            left -= len(part)
            if left < 0:
                raise ChatTemplateError(f"the chat template wrote more than {_MAX_OUTPUT_CHARACTERS} characters")
            parts.append(part)
    except ChatTemplateError:
        raise
    except Exception as error:  # whatever a stranger's code can raise: jinja2's errors, TypeError, KeyError, ...
        raise ChatTemplateError(f"the chat template failed: {error} ({type(error).__name__})") from error
    return "".join(parts)


def _plain(value: Any) -> Any:
    """A copy of JSON-like data; a template could call the methods of anything else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"messages, tools and variables must be plain data (dict, list, str, ...), got {value!r}")


def load_chat_template(path: str | Path, checkpoint: Checkpoint) -> ChatTemplate | None:
    """The chat template of the model at `path`, None if it has none.

    Raises CheckpointError if its file is broken, ChatTemplateError if the template is too long.
    """
    path = Path(path)
    gguf = checkpoint.gguf
    if gguf is None:
        config = read_json(path, "tokenizer_config.json") or {}
        text, special_tokens = _folder_template(path, config), _special_tokens(config)
    else:
        from paged.text.gguf_chat import gguf_chat_template

        text, special_tokens = gguf_chat_template(gguf)
    return None if text is None else ChatTemplate(text, special_tokens)


def _folder_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = file_in(folder, "chat_template.jinja")
    if path.is_file():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{path}: expected at most {_MAX_TEMPLATE_BYTES} bytes, found {path.stat().st_size}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8: {error}") from error
    found = (read_json(folder, "chat_template.json") or config).get("chat_template")
    if isinstance(found, list):  # several, each with a name
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[-1].get("template") if named else None
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{folder}: chat_template: expected a string, found {json.dumps(found)[:200]}")
    return found


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like of tokenizer_config.json: a string each, or an object with the string as content."""
    found = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found
