# SPDX-License-Identifier: Apache-2.0
"""Structured output through the engine: on every backend, and nobody but its request feels a broken grammar."""

from __future__ import annotations

import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import paged
from backends import open_llm
from paged import SamplingParams, StructuredOutputsParams, grammar
from tiny_models import tiny_model

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema judges what was generated: pip install 'paged[test]'")
pytest.importorskip("llguidance", reason="structured output is an extra: pip install 'paged[structured]'")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bob"]},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}


def save_with_tokenizer(folder: Path) -> Path:
    """A tiny model of 320 tokens with a byte-level tokenizer, "</s>" (2) ends an answer."""
    tiny_model("llama").save(folder)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(['{"name": "Ada", "ages": [1, 22]}', "the cat and the hat"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer(tmp_path_factory.mktemp("llama"))


def structured(seed: int = 0, max_tokens: int = 120, **kind: Any) -> SamplingParams:
    """Hot sampling of what a random model finds likely: noise, but for the grammar."""
    own = {name: kind.pop(name) for name in ("stop", "ignore_eos", "temperature") if name in kind}
    settings = {"temperature": 1.0, "max_tokens": max_tokens, "seed": seed, **own}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**kind), **settings)


def test_noise_becomes_json(llm: paged.LLM) -> None:
    params = [structured(seed, json=SCHEMA) for seed in range(8)]
    answers = llm.generate([[5, 6, 7]] * 8, params, use_tqdm=False)
    whole = [answer for answer in answers if answer.finish_reason == "stop"]
    assert whole and not any(answer.error for answer in answers)
    for answer in whole:
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_choices_expressions_and_grammars(llm: paged.LLM) -> None:
    prompts: list[list[int]] = [[5], [6], [7], [8, 9]]
    params = [
        structured(1, choice=["yes", "no, never"]),
        structured(2, regex=r"[a-f]{2}-[0-9]{3}"),
        structured(3, grammar='start: ("ha" | "ho") " " ("ha" | "ho") "!"'),
        structured(4, regex=r"x{3}y", ignore_eos=True),  # ends where nothing may follow
    ]
    yes, code, laugh, end = llm.generate(prompts, params, use_tqdm=False)
    assert yes.text in ("yes", "no, never") and yes.finish_reason == "stop"
    assert re.fullmatch(r"[a-f]{2}-[0-9]{3}", code.text)
    assert re.fullmatch(r"h[ao] h[ao]!", laugh.text)
    assert (end.text, end.finish_reason) == ("xxxy", "stop")


def test_the_answer_does_not_depend_on_the_batch(llm: paged.LLM) -> None:
    params = [structured(seed, json=SCHEMA) for seed in range(4)]
    alone = [llm.generate([5, 6, seed + 3], one) for seed, one in enumerate(params)]
    others = [SamplingParams(max_tokens=30, seed=9)] * 4
    batch = llm.generate([[5, 6, seed + 3] for seed in range(4)] + [[11]] * 4, params + others, use_tqdm=False)
    assert [answer.token_ids for answer in batch[:4]] == [answer.token_ids for answer in alone]


def test_logprobs_are_of_what_the_grammar_allows_or_of_the_model(llm: paged.LLM) -> None:
    grammar_of = StructuredOutputsParams(choice=["yes", "no, never"])
    answers = [
        llm.generate(
            [5],
            SamplingParams(
                temperature=1.0, seed=1, max_tokens=20, structured_outputs=grammar_of, logprobs=320, logprobs_mode=mode
            ),
        )
        for mode in ("processed_logprobs", "raw_logprobs")
    ]  # fmt: skip
    assert answers[0].token_ids == answers[1].token_ids
    processed, raw = (answer.logprobs or [] for answer in answers)
    assert len(processed) == len(raw) == len(answers[0].token_ids)
    for of_grammar, of_model in zip(processed, raw, strict=True):
        kept = [token for token, found in of_grammar.items() if found.logprob > -math.inf]
        assert 0 < len(kept) < 10 and all(found.logprob > -math.inf for found in of_model.values())
        share = math.log(sum(math.exp(of_model[token].logprob) for token in kept))
        for token in kept:
            assert of_grammar[token].logprob == pytest.approx(of_model[token].logprob - share, abs=1e-3)


def test_stop_strings_cut_it(llm: paged.LLM) -> None:
    answer = llm.generate([5], structured(json=SCHEMA, stop='": "'))
    assert answer.text.startswith("{") and '": "' not in answer.text


def test_a_malformed_schema_fails_its_request_alone(llm: paged.LLM) -> None:
    params = [structured(json=SCHEMA), structured(json={"type": "strng"}), structured(regex="("), SamplingParams()]
    good, bad, worse, free = llm.generate([[5]] * 4, params, use_tqdm=False)
    assert good.error is None and free.error is None
    assert bad.finish_reason == worse.finish_reason == "error"
    assert bad.error is not None and "json cannot be compiled: Invalid type: strng" in bad.error
    assert worse.error is not None and "unclosed group" in worse.error


def test_a_stream_of_json(llm: paged.LLM) -> None:
    text = "".join(chunk.text for chunk in llm.stream([5, 6], structured(5, json=SCHEMA)))
    assert text == llm.generate([5, 6], structured(5, json=SCHEMA)).text


def test_nobody_waits_for_a_slow_compilation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, go_on, compile_one = threading.Event(), threading.Event(), grammar._compile

    def slow(tokenizer: Any, params: StructuredOutputsParams) -> Any:
        if params.regex == "slow":
            compiling.set()
            assert go_on.wait(60)
        return compile_one(tokenizer, params)

    monkeypatch.setattr(grammar, "_compile", slow)
    with open_llm(folder, "cpu") as llm:
        stream = llm.stream([5], structured(regex="slow"))
        assert compiling.wait(60)
        assert llm.generate([6], SamplingParams(max_tokens=4)).error is None
        assert llm.generate([6], structured(choice=["quick"])).text == "quick"
        go_on.set()
        assert "".join(chunk.text for chunk in stream) == "slow"


def test_params_are_checked_at_once(llm: paged.LLM) -> None:
    with pytest.raises(TypeError, match="takes StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give one of them"):
        SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"), guide=lambda: None)  # type: ignore[arg-type,return-value]


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with open_llm(tiny_model("llama").save(tmp_path), "cpu") as llm, pytest.raises(ValueError, match="no tokenizer"):
        llm.generate([5], structured(regex="a"))
