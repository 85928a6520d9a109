# SPDX-License-Identifier: Apache-2.0
"""The `paged` command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paged.llm import LLM
    from paged.sampling import SamplingParams

DEFAULT_MODEL = "smollm2-135m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status. Mistakes of the caller end in one line on stderr and status 2."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"paged: {error}", file=sys.stderr)
        return 2


def _generate(options: argparse.Namespace) -> int:
    with _open(options) as llm:
        is_chat = llm.has_chat_template and not options.raw
        _print_answer(llm, [{"role": "user", "content": options.prompt}] if is_chat else options.prompt, options)
    return 0


def _chat(options: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    with _open(options) as llm:
        print("Type a message. Ctrl-C stops an answer, Ctrl-D ends the chat, /clear starts anew.", file=sys.stderr)
        messages: list[dict[str, str]] = [{"role": "system", "content": options.system}] if options.system else []
        start = list(messages)
        for line in _lines():
            if line == "/clear":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": line})
            try:
                answer = _print_answer(llm, messages, options)
            except ValueError as error:  # the conversation no longer fits, or the template refuses it
                print(f"paged: {error}", file=sys.stderr)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})
    return 0


def _lines() -> Iterator[str]:
    """What the user types, without empty lines, until Ctrl-D. Ctrl-C at the prompt drops the line."""
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if line:
            yield line


def _print_answer(llm: LLM, prompt: str | list[dict[str, str]], options: argparse.Namespace) -> str:
    """Prints chunks as they come; Ctrl-C ends the answer, also one that has not begun. Returns what was printed."""
    parts: list[str] = []
    stream = None
    try:
        if isinstance(prompt, str):
            stream = llm.stream(prompt, _sampling(options))
        else:
            stream = llm.chat(prompt, _sampling(options), stream=True)
        for chunk in stream:
            parts.append(chunk.text)
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        if stream is not None:
            stream.close()
        exec("")  # one that left an exec(str) of a first import would else end Python by SIGINT at its exit
        print(" [stopped]", end="")
    print(flush=True)
    return "".join(parts)


def _pull(options: argparse.Namespace) -> int:
    from paged.loading.pull import KNOWN_MODELS, pull

    if options.list:
        print("\n".join(KNOWN_MODELS))
        return 0
    print(pull(options.model))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from paged.inspection import inspect

    described = inspect(
        options.model, show_program=options.program, dtype=options.dtype, kv_cache_dtype=options.kv_cache_dtype,
        num_threads=options.threads, device=options.device,
    )  # fmt: skip
    print(described)
    return 0


def _trace(options: argparse.Namespace) -> int:
    from pathlib import Path

    from paged.trace import load

    source = Path(options.file)
    target = Path(options.output) if options.output else source.with_suffix(".html")
    target.write_text(load(source).html(source.name), encoding="utf-8")
    print(target)
    return 0


def _open(options: argparse.Namespace) -> LLM:
    from paged.llm import LLM

    llm = LLM(
        options.model, dtype=options.dtype, kv_cache_dtype=options.kv_cache_dtype, device=options.device,
        num_threads=options.threads, max_num_sequences=1,
    )  # fmt: skip
    if options.verbose:
        print(repr(llm), file=sys.stderr)
    return llm


def _sampling(options: argparse.Namespace) -> SamplingParams:
    from paged.sampling import SamplingParams

    return SamplingParams(
        temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, seed=options.seed,
        max_tokens=options.max_tokens,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    from paged import __version__

    parser = argparse.ArgumentParser(prog="paged", description="The embeddable LLM engine.")
    parser.add_argument("--version", action="version", version=f"paged {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    generate = commands.add_parser("generate", help="answer one prompt")
    generate.add_argument("prompt")
    generate.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    _add_model_options(generate)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", help="talk with a model")
    chat.add_argument("--system", default="", help="system message")
    _add_model_options(chat)
    chat.set_defaults(run=_chat)

    pull = commands.add_parser("pull", help="fetch a model known by a short name into the cache folder")
    pull.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    pull.add_argument("--list", action="store_true", help="list the short names")
    pull.set_defaults(run=_pull)

    inspect = commands.add_parser("inspect", help="show what a model consists of and where a step's time goes")
    inspect.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    inspect.add_argument("--program", action="store_true", help="list the ops with shapes, bytes and measured time")
    _add_engine_options(inspect)
    inspect.set_defaults(run=_inspect)

    trace = commands.add_parser("trace", help="draw a trace (LLM.stop_trace().save(FILE)) as a page for a browser")
    trace.add_argument("file")
    trace.add_argument("--output", "-o", default=None, help="default: FILE with .html in place of its suffix")
    trace.set_defaults(run=_trace)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    parser.add_argument(
        "--kv-cache-dtype", default="auto", help="auto, float32, bfloat16, float16 or int8 (default: auto, as --dtype)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=None, help="default: all physical cores")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help=f"short name, .gguf, folder or Hub id (default: {DEFAULT_MODEL})")
    add("--max-tokens", type=int, default=512)
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0)
    add("--top-k", type=int, default=0)
    add("--seed", type=int, default=None)
    add("--verbose", action="store_true", help="say what was loaded and how")
    _add_engine_options(parser)
