# SPDX-License-Identifier: Apache-2.0
"""Targets for fuzzing everything that reads a model's files: bytes in, done or a named exception out.

test_fuzz_loaders.py drives them with hypothesis. For a coverage-guided run of any length (pip install atheris):

    python tests/fuzz_loaders.py TARGET [-max_total_time=600] [folder for what is found]
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from safetensors.numpy import save
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from loading_files import VOCABULARY, write_llama_gguf
from paged.loading import CheckpointError, open_checkpoint
from paged.loading.checkpoint import Checkpoint
from paged.loading.safetensors_file import SafetensorsFile
from paged.model_config import ModelConfig
from paged.models import record
from paged.text import ChatTemplate, ChatTemplateError, load_chat_template, load_tokenizer

NAMED = (CheckpointError, ChatTemplateError)
TEXTS = ["ab a</s>b", "Hé\n🎉", "<s>\x00 ▁", "a" * 200]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "b"}]


class _NoTensors:
    def names(self) -> list[str]:
        return []

    def close(self) -> None: ...

    def tensor(self, name: str) -> Any: ...


def _written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _use_tokenizer(path: Path, checkpoint: Checkpoint) -> None:
    tokenizer = load_tokenizer(path, checkpoint)
    if tokenizer is not None:
        tokenizer.token_table()
        for text in TEXTS:
            token_ids = tokenizer.encode(text)
            tokenizer.decode([token for token in token_ids if token < tokenizer.vocab_size])


def config_json(folder: Path, data: bytes) -> None:
    """The only target that may end in a plain ValueError: it names the key."""
    _written(folder, "config.json", data)
    _written(folder, "model.safetensors", _safetensors_seed())
    with open_checkpoint(folder) as checkpoint:
        try:
            config = ModelConfig.from_hf(checkpoint.config)
        except ValueError as error:
            assert str(error).startswith("config: "), error
            return
        if config.num_layers <= 64:
            record(config, "float32")


def safetensors(folder: Path, data: bytes) -> None:
    file = SafetensorsFile(_written(folder, "model.safetensors", data))
    try:
        for name in file.names():
            try:
                assert np.prod(file.tensor(name).dense().shape) * 2 <= len(data)
            except CheckpointError as error:
                assert "expected dtype" in str(error), error
    finally:
        file.close()


def gguf(folder: Path, data: bytes) -> None:
    path = _written(folder, "model.gguf", data)
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            checkpoint.dense(name)
        _use_tokenizer(path, checkpoint)
        template = load_chat_template(path, checkpoint)
        if template is not None:
            template.render(CHAT)
        try:
            ModelConfig.from_hf(checkpoint.config)
        except ValueError as error:
            assert str(error).startswith("config: "), error


def tokenizer_json(folder: Path, data: bytes) -> None:
    _written(folder, "tokenizer.json", data)
    _use_tokenizer(folder, Checkpoint(folder, _NoTensors(), {"eos_token_id": 1}, {}))


def sentencepiece_model(folder: Path, data: bytes) -> None:
    _written(folder, "tokenizer.model", data)
    _use_tokenizer(folder, Checkpoint(folder, _NoTensors(), {}, {}))


def tokenizer_config(folder: Path, data: bytes) -> None:
    """The settings and the template beside a tokenizer.model."""
    _written(folder, "tokenizer.model", _sentencepiece_seed())
    _written(folder, "tokenizer_config.json", data)
    checkpoint = Checkpoint(folder, _NoTensors(), {}, {})
    _use_tokenizer(folder, checkpoint)
    template = load_chat_template(folder, checkpoint)
    if template is not None:
        template.render(CHAT)


def template(folder: Path, data: bytes) -> None:
    ChatTemplate(data.decode(errors="replace"), {"bos_token": "<s>"}).render(CHAT, tools=[{"name": "f"}])


def _config_seed() -> bytes:
    rope = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = {
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "rope_parameters": rope,
        "use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
        "eos_token_id": [1, 2],
    }  # fmt: skip
    return json.dumps(config).encode()


@cache
def _safetensors_seed() -> bytes:
    halves = np.arange(6, dtype=np.float16).reshape(2, 3)
    return save({"a": np.array([np.nan, np.inf, 1], np.float32), "b": halves, "c": np.zeros((0, 4), np.float32)})


def _gguf_seed(kind: str) -> bytes:
    tokens = [token.replace("Ġ", "▁") if kind == "llama" else token for token in VOCABULARY]
    keys = {"model": kind, "pre": "gpt-2", "tokens": tokens, "token_type": [2, 3, 3, 1, 1, 1, 1, 1]}
    keys |= {"merges": ["a b", "Ġ a"], "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    keys |= {"scores": [0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0, -4.0]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with tempfile.TemporaryDirectory() as folder:
        return write_llama_gguf(Path(folder) / "m.gguf", **metadata).read_bytes()


def _tokenizer_seed() -> bytes:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["hello hello world"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return tokenizer.to_str().encode()


@cache
def _sentencepiece_seed() -> bytes:
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "ab a b aab"] * 9), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


def _tokenizer_config_seed() -> bytes:
    entries = {"0": {"content": "<unk>", "special": True}, "300": {"content": "<|own|>", "special": True}}
    chat_template = [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]
    config = {"added_tokens_decoder": entries, "bos_token": {"content": "<s>"}, "add_bos_token": True}
    return json.dumps(config | {"chat_template": chat_template, "legacy": True}).encode()


def _template_seed() -> bytes:
    return (
        b"{{ bos_token }}{% set ns = namespace(a='') %}{% for m in messages if m.role != 'tool' %}{{ loop.index0 }}"
        b"{%- if m.content is string and 'h' in m.content[:3] -%}{% set ns.a = ns.a ~ m.content | trim + 'x' * 3 %}"
        b"{% else %}{{ m.content.split('b')[-1].replace('a', '%s' % 2) }}{% endif %}{% endfor %}{{ ns.a }}"
        b"{% macro f(x, y=1) %}{{ x | tojson(indent=2) }}{% endmacro %}{{ f(tools) }}{{ raise_exception('no') }}"
    )


Target = Callable[[Path, bytes], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (config_json, safetensors, gguf, tokenizer_json, sentencepiece_model, tokenizer_config, template)
}


@cache
def seeds(target: str) -> list[bytes]:
    """Whole files that the target takes."""
    return {
        "config_json": lambda: [_config_seed()],
        "safetensors": lambda: [_safetensors_seed()],
        "gguf": lambda: [_gguf_seed("gpt2"), _gguf_seed("llama")],
        "tokenizer_json": lambda: [_tokenizer_seed()],
        "sentencepiece_model": lambda: [_sentencepiece_seed()],
        "tokenizer_config": lambda: [_tokenizer_config_seed()],
        "template": lambda: [_template_seed()],
    }[target]()


def run(target: str, data: bytes) -> str | None:
    """The name of the exception that refused `data`, None if it was taken. Whatever else it raises is a finding."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        try:
            TARGETS[target](Path(folder), data)
        except NAMED as error:
            return type(error).__name__
    return None


def main() -> None:
    import atheris

    target = sys.argv.pop(1)
    corpus = Path(tempfile.mkdtemp(prefix="corpus"))
    for index, seed in enumerate(seeds(target)):
        (corpus / str(index)).write_bytes(seed)
    atheris.instrument_all()
    atheris.Setup([*sys.argv, str(corpus)], lambda data: run(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
