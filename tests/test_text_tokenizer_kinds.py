# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every supported kind, made small: tokenizer.json, tokenizer.model and GGUF vocabularies."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from loading_files import VOCABULARY, write_llama_gguf
from paged.loading import CheckpointError
from paged.loading.checkpoint import Checkpoint
from paged.loading.gguf_file import GgufFile
from paged.text import Tokenizer, load_tokenizer
from paged.text import sentencepiece_model as spm
from paged.text.byte_level_json import byte_level_tokens
from paged.text.gguf_backend import load_gguf_tokenizer
from paged.text.gguf_pre_tokenizers import splitting_of
from paged.text.sentencepiece_backend import load_processor
from paged.text.tokenizers_backend import load_tokenizers
from text_samples import SAMPLES, random_texts

CORPUS = SAMPLES + random_texts(50, seed=1)


class _NoTensors:
    def names(self) -> list[str]:
        return []

    def close(self) -> None: ...

    def tensor(self, name: str) -> Any: ...


def _load(folder: Path, config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> Tokenizer:
    tokenizer = load_tokenizer(folder, Checkpoint(folder, _NoTensors(), config or {}, generation or {}))
    assert tokenizer is not None
    return tokenizer


def _save(folder: Path, tokenizer: tokenizers.Tokenizer) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _llama3(folder: Path) -> tokenizers.Tokenizer:
    """Byte-level BPE, words split as in Llama 3, a template that adds a beginning."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(splitting_of("llama-bpe", "").patterns[0]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["my own", "日本"])
    tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 0)])
    _save(folder, tokenizer)
    return tokenizer


def test_a_byte_level_tokenizer_json(tmp_path: Path) -> None:
    oracle = _llama3(tmp_path)
    oracle.enable_truncation(3)
    _save(tmp_path, oracle)  # a saved truncation is for training and must not cut prompts
    oracle.no_truncation()
    ours = _load(tmp_path, {"bos_token_id": 0, "eos_token_id": 1}, {"eos_token_id": [1, 5]})
    assert ours.eos_token_ids == {1, 5} and ours.bos_token_id == 0
    for text in [*CORPUS, "my own 日本 <|end|> x"]:
        token_ids = oracle.encode(text).ids
        assert ours.encode(text) == token_ids
        for skip in (True, False):
            assert ours.decode(token_ids, skip) == oracle.decode(token_ids, skip_special_tokens=skip)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_tokenizer_json(tmp_path: Path, scheme: str) -> None:
    oracle = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    oracle.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    oracle.decoder = decoders.Metaspace(prepend_scheme=scheme)
    oracle.train_from_iterator(["hello world foo bar"] * 3, trainers.BpeTrainer(special_tokens=["<unk>"]))
    ours = _load(_save(tmp_path, oracle))
    for text in ("hello world", " hello  world ", "foo", ""):
        token_ids = oracle.encode(text).ids
        assert ours.encode(text) == token_ids and ours.decode(token_ids) == oracle.decode(token_ids)


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.CTC(), decoders.BPEDecoder(), None])
def test_decoders_that_are_not_bytes_are_refused(tmp_path: Path, decoder: Any) -> None:
    oracle = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        oracle.decoder = decoder
    with pytest.raises(CheckpointError, match="expected a decoder of bytes"):
        _load(_save(tmp_path, oracle))


def test_a_broken_tokenizer_json_is_refused_at_every_length(tmp_path: Path) -> None:
    _llama3(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 97):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            load_tokenizers(tmp_path)


def test_a_panic_of_the_library_is_an_ordinary_error(tmp_path: Path) -> None:
    _llama3(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}  # the template needs one
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: tokenizers refuses it"):
        load_tokenizers(tmp_path).encoder.encode("x", True)


def test_a_byte_level_json_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    oracle = _llama3(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    tokens = byte_level_tokens(content)
    assert tokens is not None and len(tokens.table) == oracle.get_vocab_size(with_added_tokens=True)
    assert tokens.added == {token.content: i for i, token in oracle.get_added_tokens_decoder().items()}
    special = {i for i, token in oracle.get_added_tokens_decoder().items() if token.special}
    assert set(np.flatnonzero(tokens.table.is_special).tolist()) == special
    moved = dict(tokens.added)
    moved[next(iter(moved))] = 9
    for size, added in ((len(tokens.table) - 1, tokens.added), (len(tokens.table), moved)):
        with pytest.raises(CheckpointError, match=r"x: expected \d+ tokens, found \d+; elsewhere"):
            tokens.check(size, dict(added), "x")


def test_what_is_no_plain_byte_level_json_is_left_to_the_library(tmp_path: Path) -> None:
    _llama3(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    model, added = content["model"], content["added_tokens"]
    last = {**added[-1], "id": added[-1]["id"] + 1}
    changes: list[dict[str, Any]] = [
        {"decoder": None}, {"decoder": {"type": "Fuse"}}, {"model": {**model, "type": "WordLevel"}},
        {"model": {**model, "vocab": {}}, "added_tokens": None}, {"model": {**model, "vocab": {"a": "b"}}},
        {"model": {**model, "vocab": {**model["vocab"], "b": 1 << 21}}}, {"added_tokens": [*added[:-1], last]},
        {"added_tokens": [*added, added[0]]}, {"added_tokens": ["a"]},
        {"model": {**model, "vocab": {("\ud800" if i == 0 else t): i for t, i in model["vocab"].items()}}},
    ]  # fmt: skip
    for change in changes:
        assert byte_level_tokens(content | change) is None, change.keys()


def test_the_library_reads_a_file_when_a_text_is_encoded(tmp_path: Path) -> None:
    oracle = _llama3(tmp_path)
    backend = load_tokenizers(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: backend.encoder.encode("hello", True), range(8)))
    assert answers == [oracle.encode("hello").ids] * 8


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, Checkpoint(tmp_path, _NoTensors(), {}, {})) is None


def test_ids_out_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    _llama3(tmp_path)
    for ids in (100_000, -1, [1, "x"], True):
        with pytest.raises(CheckpointError, match="eos_token_id: expected token ids below"):
            _load(tmp_path, {"eos_token_id": ids})


@pytest.fixture(scope="module")
def sentencepiece_bytes() -> bytes:
    model = io.BytesIO()
    sentences = iter([text.replace("\n", " ").replace("\x00", "") for text in CORPUS * 3 if text.strip()])
    options = {"model_type": "bpe", "vocab_size": 1200, "byte_fallback": True, "hard_vocab_limit": False}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **options)
    return model.getvalue()


def _sentencepiece_folder(folder: Path, model: bytes, **config: Any) -> Path:
    (folder / "tokenizer.model").write_bytes(model)
    size = load_processor(model, "").get_piece_size()
    texts = {"0": "<unk>", "1": "<s>", "2": "</s>", str(size): "<|own|>"}
    entries = {key: {"content": text, "special": True} for key, text in texts.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries} | config))
    return folder


def _transformers_llama(model: bytes, **config: Any) -> LlamaTokenizer:
    """What transformers makes of a tokenizer.model (its own reader of the file needs protobuf)."""
    processor = load_processor(model, "")
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = generate_merges(vocab, {piece: processor.get_score(i) for piece, i in vocab.items()})
    tokenizer = LlamaTokenizer(vocab, merges, **({"add_bos_token": True} | config))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|own|>"]})
    return tokenizer


@pytest.mark.parametrize("config", [{"legacy": False}, {"legacy": False, "add_bos_token": False}, {"legacy": True}])
def test_a_tokenizer_model_is_what_transformers_makes_of_it(
    tmp_path: Path, sentencepiece_bytes: bytes, config: dict[str, Any]
) -> None:
    ours = _load(_sentencepiece_folder(tmp_path, sentencepiece_bytes, **config))
    theirs = _transformers_llama(sentencepiece_bytes, **config)
    # Unlike sentencepiece, transformers 5 puts no space in front of text that has one.
    corpus = [text for text in CORPUS if text and text[0] not in " ▁"]
    for text in [*corpus, "<s>a b</s>c", "a<|own|>b", "<|own|>x"]:
        token_ids = theirs(text)["input_ids"]
        assert ours.encode(text) == token_ids, text
        for skip in (True, False):
            expected = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(token_ids, skip) == expected


def test_plain_text_gets_the_ids_of_sentencepiece(tmp_path: Path, sentencepiece_bytes: bytes) -> None:
    ours = _load(_sentencepiece_folder(tmp_path, sentencepiece_bytes))
    oracle = load_processor(sentencepiece_bytes, "")
    for text in CORPUS:
        assert ours.encode(text) == [oracle.bos_id(), *oracle.encode(text)], text
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")  # as sentencepiece decodes


def test_broken_sentencepiece_folders_are_refused(tmp_path: Path, sentencepiece_bytes: bytes) -> None:
    folder = _sentencepiece_folder(tmp_path, sentencepiece_bytes)
    for entry in ({"content": 3}, {"content": ""}, {"content": "\ud800"}, "x", {"content": "<x>", "lstrip": True}):
        config = {"added_tokens_decoder": {"5": entry}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"added_tokens_decoder: expected id|lstrip is supported with"):
            _load(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="sentencepiece refuses"):
        _load(folder)


def test_a_model_written_here_is_the_one_sentencepiece_wrote(sentencepiece_bytes: bytes) -> None:
    original = load_processor(sentencepiece_bytes, "")
    count = original.get_piece_size()
    kinds = [(original.is_unknown, 2), (original.is_control, 3), (original.is_unused, 5), (original.is_byte, 6)]
    types = [next((type for is_kind, type in kinds if is_kind(i)), spm.NORMAL) for i in range(count)]
    pieces, scores = [original.id_to_piece(i) for i in range(count)], [original.get_score(i) for i in range(count)]
    ours = load_processor(spm.model(pieces, scores, types, original.unk_id()), "")
    without_prefix = load_processor(spm.without_prefix(sentencepiece_bytes), "")
    for text in CORPUS:
        assert ours.encode(text) == without_prefix.encode(text)
        assert ours.encode(" " + text) == original.encode(text) or not text


def _vocabulary(**changes: Any) -> dict[str, Any]:
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": VOCABULARY, "token_type": [2, 3, 3, 1, 1, 1, 1, 1]}
    keys |= {"merges": ["a b", "Ġ a"], "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    keys |= {"scores": [0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0, -4.0]}
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True)])
def test_a_gguf_vocabulary_frames_text_as_told(tmp_path: Path, kind: str, bos: bool, eos: bool) -> None:
    tokens = [token.replace("Ġ", "▁") if kind == "llama" else token for token in VOCABULARY]
    flags = {"add_bos_token": bos, "add_eos_token": eos, "add_space_prefix": False}
    path = write_llama_gguf(tmp_path / "m.gguf", **_vocabulary(model=kind, tokens=tokens, **flags))
    encoder = load_gguf_tokenizer(GgufFile(path)).encoder
    assert encoder.encode("ab a</s>b", True) == [1] * bos + [5, 7, 2, 4] + [2] * eos
    assert encoder.encode("ab", False) == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "expected gpt2 or llama, found 'bert'"),
        ({"model": None}, "expected gpt2 or llama, found None"),
        ({"pre": "martian"}, "tokenizer.ggml.pre: expected one of default, .*found 'martian'"),
        ({"tokens": None}, "tokens: expected an array"),
        ({"tokens": ["a"] * 8}, "texts that differ"),
        ({"tokens": [1, 2]}, "array of strings"),
        ({"token_type": [1]}, "one for each of 8 tokens, found 1"),
        ({"token_type": [9] * 8}, "expected 1 to 6, found"),
        ({"merges": ["a b c", "d"]}, "two tokens with one space"),
        ({"merges": ["ab"]}, "two tokens with one space"),
        ({"merges": ["a z"]}, "tokenizers refuses"),
        ({"bos_token_id": 8, "add_bos_token": True}, "bos_token_id: expected an id below 8, found 8"),
        ({"add_bos_token": 1}, "expected true or false"),
        ({"model": "llama", "unknown_token_id": None}, "unknown_token_id: expected an id"),
        ({"model": "llama", "scores": [0.0]}, "one for each of 8 tokens"),
        ({"model": "llama", "token_type": [6] * 8}, "sentencepiece refuses"),
    ],
)
def test_broken_gguf_vocabularies_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", **_vocabulary(**changes))
    with pytest.raises(CheckpointError, match=message):
        load_gguf_tokenizer(GgufFile(path)).encoder.encode("a", True)


@pytest.mark.parametrize("name", ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_words_are_split_without_losing_a_character(name: str) -> None:
    for pattern in splitting_of(name, "").patterns:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for text in [*CORPUS, "12345 a1b22"]:
            assert "".join(word for word, _ in split.pre_tokenize_str(text)) == text
