# SPDX-License-Identifier: Apache-2.0
"""GGUF files mean the same model as their Hugging Face folders: config, names, rows, values."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loading_files import finish, llama_tensors, write_llama_gguf
from paged.loading import CheckpointError, open_checkpoint
from paged.loading.gguf_rope import llama3_factors

# What transformers writes into every config.json, and no model reads when generating.
IRRELEVANT = {"_model_name_or_path", "_sliding_window_pattern", "attention_dropout", "dtype", "initializer_range"}
IRRELEVANT |= {"pretraining_tp", "transformers_version", "unk_token_id", "use_cache"}


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_config_and_weights_are_those_of_the_folder(real_models: dict[str, Path], name: str) -> None:
    """transformers wrote the folder from the GGUF file, in bfloat16."""
    folder = json.loads((real_models[name] / "config.json").read_text())
    with open_checkpoint(real_models[f"{name}.gguf"]) as ours, open_checkpoint(real_models[name]) as theirs:
        assert {key: ours.config.get(key, "none") for key in folder if key not in IRRELEVANT} == {
            key: value for key, value in folder.items() if key not in IRRELEVANT
        }
        assert set(ours.names()) == set(theirs.names())
        chosen = [name for name in ours.names() if ".layers.1." in name] + ["model.norm.weight"]
        for name in chosen:
            found = torch.from_numpy(ours.dense(name)).bfloat16().float().numpy()
            np.testing.assert_array_equal(found, theirs.dense(name), err_msg=name)


def test_llama_rows_are_unpermuted(tmp_path: Path) -> None:
    """llama.cpp's converter stores row (head, pair, half) where Hugging Face has (head, half, pair)."""
    stored = llama_tensors()
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf")) as checkpoint:
        for name, heads in (("q", 2), ("k", 1)):
            raw = checkpoint.tensor(f"model.layers.0.self_attn.{name}_proj.weight")
            rows = stored[f"blk.0.attn_{name}.weight"]
            expected = rows.reshape(heads, 8, 2, 32).swapaxes(1, 2).reshape(-1, 32)
            np.testing.assert_array_equal(raw.dense(), expected)
            np.testing.assert_array_equal(raw.data.view(np.float32).reshape(-1, 32), rows)
            assert raw.row_order is not None and raw.row_order.dtype == np.int32
        assert checkpoint.tensor("model.layers.0.self_attn.v_proj.weight").row_order is None


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_keep_their_rows(tmp_path: Path, architecture: str) -> None:
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf", architecture)) as checkpoint:
        name = "model.layers.0.self_attn.q_proj.weight"
        np.testing.assert_array_equal(checkpoint.dense(name), llama_tensors()["blk.0.attn_q.weight"])
        assert checkpoint.config["architectures"] == [f"Qwen{architecture[-1]}ForCausalLM"]
        assert checkpoint.config["rms_norm_eps"] == 1e-5 and checkpoint.config["tie_word_embeddings"] is True


def test_ends_of_turn_end_an_answer(tmp_path: Path) -> None:
    changes = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("bos", "eos", "eot", "eom", "padding"))}
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf", **changes)) as checkpoint:
        assert checkpoint.generation_config == {"bos_token_id": 0, "eos_token_id": [1, 2, 3], "pad_token_id": 4}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_rope_scaling_is_carried_over(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf", **changes)) as checkpoint:
        assert checkpoint.config["rope_parameters"] == expected


def test_llama3_scaling_is_found_from_its_factors(tmp_path: Path) -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    parameters |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(32, dtype=torch.float64) / 32)
    factors = (plain / scaled).float().numpy()
    np.testing.assert_allclose(llama3_factors(500000.0, 32.0, 32), factors, rtol=1e-5)
    for stored, accepted in ((factors, True), (factors * 1.5, False), (factors[:-1], False)):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        for key, value in (("block_count", 1), ("embedding_length", 128), ("feed_forward_length", 8)):
            writer.add_uint32(f"llama.{key}", value)
        writer.add_uint32("llama.context_length", 64)
        writer.add_uint32("llama.attention.head_count", 2)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_float32("llama.rope.freq_base", 500000.0)
        writer.add_tensor("token_embd.weight", np.zeros((4, 128), np.float32))
        writer.add_tensor("rope_freqs.weight", stored)
        finish(writer)
        if accepted:
            with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
                assert checkpoint.config["rope_parameters"] == parameters
                assert checkpoint.names() == ["model.embed_tokens.weight"]
        else:
            with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
                open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "llama.block_count: expected a positive integer, found None"),
        ({"block_count": 0}, "expected a positive integer, found 0"),
        ({"block_count": 1 << 31}, "block_count is"),
        ({"block_count": "many"}, "found 'many'"),
        ({"attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon: expected a number"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon: expected a number"),
        ({"rope.scaling.type": "longrope"}, "found 'longrope'"),
        ({"rope.dimension_count": 8}, "rope.dimension_count differs"),
        ({"attention.value_length": 8}, "value_length differs"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id: expected a token id"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_llama_gguf(tmp_path / "m.gguf", **changes))


def test_unknown_architectures_and_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="among llama, qwen2, qwen3, gemma3, found 'mamba'"):
        open_checkpoint(write_llama_gguf(tmp_path / "m.gguf", "mamba"))
    data = write_llama_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "n.gguf").write_bytes(data.replace(b"blk.0.attn_norm.weight", b"blk.0.attn_xxxx.weight"))
    with pytest.raises(CheckpointError, match=r"tensor 'blk\.0\.attn_xxxx\.weight': not one of a llama model"):
        open_checkpoint(tmp_path / "n.gguf")
