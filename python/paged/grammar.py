# SPDX-License-Identifier: Apache-2.0
"""Structured output: compiles what a request asks for and says, token by token, what may come next.

`llguidance` does both, without the GIL and with bounded work (docs/design.md says why this library). Each model has one
`GrammarCompiler`; each request gets a `GrammarGuide`. The library is imported when the first such request comes.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paged.guide import STOP, Stop
from paged.structured import StructuredOutputsParams
from paged.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

_MAX_COMPILED = 64
_MAX_LEXER_STATES = 50_000  # up to 2 KB each: bounds what a hostile grammar can take
_MAX_MESSAGE = 500


class GrammarCompiler:
    """Compiles and caches the grammars of one model. Safe to use from any thread; holds no lock while it compiles."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """
        Args:
            vocab_size: of the model's logits; masks have that many bits.
        Raises:
            ImportError: llguidance is missing. ValueError: the model names no token that ends an answer.
        """
        if importlib.util.find_spec("llguidance") is None:
            raise ImportError("structured output needs llguidance: pip install 'paged[structured]'")
        if not tokenizer.eos_token_ids:
            raise ValueError("structured output needs an end-of-sequence id, and this model's files name none")
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary_lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[StructuredOutputsParams, Future[llguidance.LLMatcher]] = OrderedDict()

    def guide(self, params: StructuredOutputsParams) -> GrammarGuide:
        """A guide at the beginning of a text. Waits while the grammar is compiled, by this thread or another.

        Raises:
            ValueError: it cannot be compiled, with the library's reason.
        """
        return GrammarGuide(self._matcher(params).deep_copy(), self._vocab_size)

    def _matcher(self, params: StructuredOutputsParams) -> llguidance.LLMatcher:
        with self._lock:
            found = self._compiled.get(params)
            mine = found is None
            future = self._compiled.setdefault(params, Future())
            self._compiled.move_to_end(params)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        if mine:
            try:
                future.set_result(_compile(self._llguidance_tokenizer(), params))
            except Exception as error:
                future.set_exception(error)
            except BaseException:  # an interrupt of this thread is not to be remembered
                with self._lock:
                    self._compiled.pop(params, None)
                future.set_exception(RuntimeError("compiling was interrupted in another thread: submit again"))
                raise
        return future.result()

    def _llguidance_tokenizer(self) -> llguidance.LLTokenizer:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary


class GrammarGuide:
    """Where one text stands in its grammar. To be used by one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_words = (vocab_size + 31) // 32
        self._num_consumed = 0

    def next_mask(self, token_ids: Sequence[int]) -> npt.NDArray[np.uint32] | Stop:
        """What may follow.

        Args:
            token_ids: all that was generated so far.
        Returns:
            uint32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 is set if token i may come next, an
            end-of-sequence id where the text may end. `STOP` where nothing else may follow.
        Raises:
            ValueError: the tokens leave the grammar, or following it takes more than the library's bounds.
        """
        new = list(token_ids[self._num_consumed :])
        if not self._matcher.consume_tokens(new):
            raise ValueError(f"the text leaves its grammar: {_reason(self._matcher)}")
        self._num_consumed += len(new)
        if self._matcher.is_stopped():
            return STOP
        mask = np.zeros(self._num_words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise ValueError(f"the grammar cannot be followed: {_reason(self._matcher)}")
        return mask

    @property
    def may_end(self) -> bool:
        """Whether what was consumed is a whole text of the grammar."""
        return bool(self._matcher.is_accepting())


class _Vocabulary:
    """A tokenizer as `llguidance.TokenizerWrapper` wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        table = tokenizer.token_bytes()
        size = min(len(table), vocab_size)
        self.tokens = [table[token] for token in range(size)] + [b""] * (vocab_size - size)
        special = np.flatnonzero(table.is_special[:size]).tolist()
        self.special_token_ids = sorted(tokenizer.eos_token_ids.union(special))
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False)


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> llguidance.LLTokenizer:
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size))
    ends = sorted(tokenizer.eos_token_ids)
    return llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=ends)


def _compile(tokenizer: llguidance.LLTokenizer, params: StructuredOutputsParams) -> llguidance.LLMatcher:
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, _grammar(params), log_level=0, limits=limits)
    first = matcher.deep_copy()
    first.compute_bitmask()  # finds a grammar that no text satisfies; copies share what it works out
    if first.is_error():
        raise ValueError(f"{params.kind} cannot be compiled: {_reason(first)}; got {params.source!r:.80}")
    return matcher


def _grammar(params: StructuredOutputsParams) -> str:
    """In llguidance's own form."""
    import llguidance

    if params.kind in ("json", "json_object"):
        return _json_grammar(params)
    if params.kind == "structural_tag":
        return _tag_grammar(params)
    if params.kind == "grammar":
        try:
            return llguidance.grammar_from("grammar", params.source)
        except ValueError as error:
            raise ValueError(f"grammar cannot be compiled: {error}; got {params.source!r:.80}") from error
    return llguidance.grammar_from("choice" if params.kind == "choice" else "regex", params.source)


def _json_grammar(params: StructuredOutputsParams) -> str:
    import llguidance

    schema: Any = json.loads(params.source)
    if params.disable_additional_properties:
        _close_objects(schema)
    options: Any = {"whitespace_flexible": not params.disable_any_whitespace}
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=options)


def _close_objects(schema: Any) -> None:
    """Every schema that names properties gets `additionalProperties: false`, unless it says something of its own."""
    if isinstance(schema, dict):
        if "properties" in schema or schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close_objects(part)
    elif isinstance(schema, list):
        for part in schema:
            _close_objects(part)


def _tag_grammar(params: StructuredOutputsParams) -> str:
    import llguidance

    tag = json.loads(params.source)
    try:
        tags = []
        for structure in tag["structures"]:
            begin, end = structure["begin"], structure["end"]
            trigger = next(trigger for trigger in tag["triggers"] if trigger and begin.startswith(trigger))
            tags.append(llguidance.StructTag(trigger=trigger, begin=begin, grammar=structure["schema"], end=end))
        return llguidance.StructTag.to_grammar(tags, assume_special=False)
    except (AttributeError, AssertionError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(
            "structural_tag must have a list 'structures' of begin, schema and end, and a list 'triggers' with a "
            f"beginning of each begin; got {params.source!r:.80}"
        ) from error


def _reason(matcher: llguidance.LLMatcher) -> str:
    """The library's words, without the traces that follow some."""
    if matcher.stop_reason() in ("NoExtension", "NoExtensionBias"):
        return "no text can go on from here"
    return str(matcher.get_error()).split("\n<")[0].strip()[:_MAX_MESSAGE]
