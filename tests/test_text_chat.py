# SPDX-License-Identifier: Apache-2.0
"""Chat templates: equal to transformers', confined, bounded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from paged.loading import CheckpointError, open_checkpoint
from paged.loading.checkpoint import Checkpoint
from paged.text import ChatTemplate, ChatTemplateError, load_chat_template

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{ t | tojson(indent=4) }}{{ "\\n\\n" }}{% endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.content is string %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
GEMMA = """{{ bos_token }}
{%- set ns = namespace(first='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.first = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (ns.first if loop.first else "") }}{{ message['content'] | trim }}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""
OTHER = """{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}
{% endif %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ enable_thinking is defined }}"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " Hé \n<b>'\"& 🎉 "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA, OTHER])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_that_of_transformers(template: str, chat: Any, tools: Any, prompt: bool) -> None:
    expected, _ = render_jinja_template([chat], tools, chat_template=template, add_generation_prompt=prompt, **SPECIAL)
    if template == OTHER:  # transformers shows message data under further names
        chat = [dict(message) for message in chat]
    assert ChatTemplate(template, SPECIAL).render(chat, prompt, tools) == expected[0]


def test_the_real_template_renders_as_transformers_renders_it(real_models: Mapping[str, Path]) -> None:
    path = real_models["smollm2-135m-instruct.gguf"]
    with open_checkpoint(path) as checkpoint:
        template = load_chat_template(path, checkpoint)
    assert template is not None
    for chat in CHATS:
        expected, _ = render_jinja_template([chat], chat_template=template.text, add_generation_prompt=True)
        assert template.render(chat) == expected[0]
    assert template.render([{"role": "user", "content": "hi"}]).endswith("<|im_start|>assistant\n")


def test_a_template_knows_whether_it_takes_tools() -> None:
    assert [ChatTemplate(text).takes_tools for text in (CHATML, LLAMA3, GEMMA, OTHER)] == [False, True, False, False]


def test_variables_reach_the_template() -> None:
    assert ChatTemplate("{{ enable_thinking }}").render([], variables={"enable_thinking": False}) == "False"
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([])) == 10


def test_the_template_s_own_words_are_in_the_error() -> None:
    with pytest.raises(ChatTemplateError, match="Conversation roles must alternate"):
        ChatTemplate(GEMMA, SPECIAL).render([{"role": "assistant", "content": "x"}])
    with pytest.raises(ChatTemplateError, match="not valid Jinja, line 2"):
        ChatTemplate("\n{% if %}").render([])
    with pytest.raises(ChatTemplateError, match="UndefinedError"):
        ChatTemplate("{{ messages[0].content.nothing.more }}").render([])


LAUGHS = "{% set a = namespace(s=['x']) %}{% for i in range(99) %}{% set a.s = [a.s, a.s] %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * 'x' }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 1 / 0 }}",
        # time
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
        "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ l | reject | list | length }}{% endfor %}",
        "{% set l = range(99999) %}{% for i in range(99999) %}{{ l | select('gt', 1e9) | list | length }}{% endfor %}",
        "{% set l = range(99999) | list %}{% for i in range(99999) %}{% if 'x' in l %}{% endif %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% if s ~ 'y' == s %}{% endif %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% if s.count('y') %}{% endif %}{% endfor %}",
        "{% set a = namespace(n=3) %}{% for i in range(99) %}{% set a.n = a.n * a.n %}{% endfor %}",
        # memory
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = a.s + a.s %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = a.s ~ a.s %}{% endfor %}",
        "{% set a = namespace(s=['x']) %}{% for i in range(99) %}{% set a.s = a.s + a.s %}{% endfor %}",
        LAUGHS + "{{ a.s }}",
        LAUGHS + "{{ a.s|tojson }}",
        LAUGHS + "{{ a.s|string }}",
        LAUGHS + "{{ 'a' ~ a.s }}",
        "{% set a = namespace(s=['x'], t=['x']) %}{% for i in range(99) %}{% set a.s = [a.s, a.s] %}"
        "{% set a.t = [a.t, a.t] %}{% endfor %}{{ a.s == a.t }}",
        "{% set a = namespace(s='xx') %}{% for i in range(99) %}{% set a.s = a.s.replace('x', a.s) %}{% endfor %}",
        "{% set a = namespace(s='xx') %}{% for i in range(99) %}{% set a.s = a.s | replace('x', a.s) %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = [a.s, a.s] | join(a.s) %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = a.s.join([a.s, a.s]) %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set b %}{{ a.s }}{{ a.s }}{% endset %}"
        "{% set a.s = b %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = '%s%s' % (a.s, a.s) %}{% endfor %}",
        "{% set a = namespace(s='x') %}{% for i in range(99) %}{% set a.s = '{0}{0}'.format(a.s) %}{% endfor %}",
        "{% set a = namespace(s=[]) %}{% set t = 'x' * 1000000 %}{% for i in range(99999) %}"
        "{% set a.s = a.s + [t[1:]] %}{% endfor %}",
        "{% set a = namespace(s=[]) %}{% for i in range(99999) %}{% set a.s = a.s + [range(99999)|list] %}{% endfor %}",
        "{% set s = ' x' * 9999999 %}{% for i in range(999) %}{{ s.split() | length }}{% endfor %}",
        "{% set b %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(width=1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ lipsum(1000000) }}",
        "{{ strftime_now('%Y' * 1000000) }}",
        # the compiler
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for i in [1] %}" * 200 + "{% endfor %}" * 200,
        "{{ " + "[" * 100 + "]" * 100 + " }}" + "{{ - }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ x." + "a." * 3000 + "b }}",
        "{{ " + "not " * 9999 + "1 }}",
        "{{ " + "-" * 9999 + "1 }}",
        "{{ 1" + " + 1" * 9999 + " }}",
        "x" * (1 << 20),
    ],
)
def test_hostile_templates_get_an_error(template: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(template).render([{"role": "user", "content": "hi"}])


def test_only_plain_data_is_shown_to_a_template() -> None:
    template = ChatTemplate("{{ messages }}")
    for messages in ([{"role": "user", "content": Path("x")}], ["text"], [{"role": object()}]):
        with pytest.raises(TypeError, match=r"plain data|must be a dict"):
            template.render(messages)  # type: ignore[arg-type]
    chat = [{"role": "user", "content": ("a", 1, 2.5, None, True)}]
    assert template.render(chat) == "[{'role': 'user', 'content': ['a', 1, 2.5, None, True]}]"


class _NoTensors:
    def names(self) -> list[str]:
        return []

    def close(self) -> None: ...

    def tensor(self, name: str) -> Any: ...


def _load(folder: Path) -> ChatTemplate | None:
    return load_chat_template(folder, Checkpoint(folder, _NoTensors(), {}, {}))


def test_a_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    assert _load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "<B>"}, "chat_template": "1{{ bos_token }}"}))
    assert (found := _load(tmp_path)) and found.render([]) == "1<B>"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "2{{ eos_token }}"}]
    config.write_text(json.dumps({"eos_token": "<E>", "chat_template": named}))
    assert (found := _load(tmp_path)) and found.render([]) == "2<E>"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "3"}')
    assert (found := _load(tmp_path)) and found.render([]) == "3"
    (tmp_path / "chat_template.jinja").write_text("4")
    assert (found := _load(tmp_path)) and found.render([]) == "4"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        _load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": 3}')
    with pytest.raises(CheckpointError, match="expected a string, found 3"):
        _load(tmp_path)
