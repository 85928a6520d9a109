# SPDX-License-Identifier: Apache-2.0
"""`quantize=`: float matrices rounded at load to blocks that the gguf package reads, near what they were."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

import paged
from paged import _C
from paged.loading.checkpoint import open_checkpoint
from paged.quantise import QuantisedCheckpoint
from tiny_models import tiny_model

KINDS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_1": gguf.GGMLQuantizationType.Q4_1}
BYTES = {"q8_0": 34, "q4_1": 20}


def quantised(weights: torch.Tensor, kind: str) -> np.ndarray:
    rows, cols = weights.shape
    blocks = np.zeros((rows, cols // 32 * BYTES[kind]), np.uint8)
    name = str(weights.dtype).removeprefix("torch.")
    _C.ops.quantize(_C.ThreadPool(2), weights, name, rows, cols, blocks, kind)
    return blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_no_worse_than_the_gguf_package(kind: str, dtype: torch.dtype) -> None:
    weights = torch.randn(40, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[3], weights[4] = 0, 0.25
    exact = weights.float().numpy()
    ours = dequantize(quantised(weights, kind), KINDS[kind])
    theirs = dequantize(quantize(exact, KINDS[kind]), KINDS[kind])
    assert ((ours - exact) ** 2).sum() <= ((theirs - exact) ** 2).sum() * 1.001
    assert not ours[3].any() and np.allclose(ours[4], 0.25, rtol=1e-3)
    groups = exact.reshape(-1, 32)
    bound = np.ptp(groups, axis=1) / 10 if kind == "q4_1" else np.abs(groups).max(1) / 253
    assert (np.abs(ours - exact).reshape(-1, 32).max(1) <= bound + 1e-4).all()


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match="must be finite and at most 65504, got nan"):
        quantised(torch.full((1, 32), torch.nan), "q8_0")
    with pytest.raises(ValueError, match="quantize must be 'int8', 'int4' or None, got 'int2'"):
        paged.LLM("x", quantize="int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 32 columns, got 48"):
        _C.ops.quantize(_C.ThreadPool(1), torch.zeros(2, 48), "float32", 2, 48, np.zeros(102, np.uint8), "q8_0")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_checkpoint_answers_like_its_dequantised_weights(tmp_path: Path, quantize: str) -> None:
    tiny = tiny_model("llama")
    tiny.save(tmp_path)
    params = paged.SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
    options = {"quantize": quantize, "kv_cache_bytes": 1 << 20, "max_model_len": 64}
    with open_checkpoint(tmp_path) as checkpoint:
        weights = QuantisedCheckpoint(checkpoint, quantize, _C.ThreadPool(1))  # type: ignore[arg-type]
        kinds = {name: weights.tensor(name).type for name in weights.names()}
    assert kinds["model.embed_tokens.weight"] == "q8_0"
    assert kinds["model.layers.0.mlp.up_proj.weight"] == ("q8_0" if quantize == "int8" else "q4_1")
    assert kinds["model.norm.weight"] == "float32"
    with paged.LLM(tmp_path, **options) as llm:
        together = [answer.token_ids for answer in llm.generate(prompts, params, use_tqdm=False)]
        assert [llm.generate(prompt, params, use_tqdm=False).token_ids for prompt in prompts] == together


def answers(folder: Path, **options: object) -> list[int]:
    with paged.LLM(folder, kv_cache_bytes=1 << 20, max_model_len=64, **options) as llm:  # type: ignore[arg-type]
        params = paged.SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        return llm.generate([3, 1, 4, 1, 5], params, use_tqdm=False).token_ids


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_the_file_beside_the_model_is_used_and_verified(tmp_path: Path, quantize: str) -> None:
    tiny_model("llama").save(tmp_path)
    file = tmp_path / f"paged-{quantize}.quantised"
    expected = answers(tmp_path, quantize=quantize)
    assert not file.exists()
    assert answers(tmp_path, quantize=quantize, quantize_cache=True) == expected
    written, data = file.stat().st_ino, file.read_bytes()
    assert answers(tmp_path, quantize=quantize, quantize_cache=True) == expected
    assert file.stat().st_ino == written
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".quantised"}

    for damaged in (b"", data[:-1], data[: len(data) // 2], b"x" + data[1:], data + b"\0", data[:-9] + b"?" * 9):
        file.write_bytes(damaged)
        assert answers(tmp_path, quantize=quantize, quantize_cache=True) == expected
        assert file.read_bytes() == data
    flipped = bytearray(data)
    flipped[100] ^= 1  # of a tensor: found when it is taken; that load does without, the next one writes the file
    file.write_bytes(flipped)
    assert answers(tmp_path, quantize=quantize, quantize_cache=True) == expected
    assert not file.exists()
    assert answers(tmp_path, quantize=quantize, quantize_cache=True) == expected
    assert file.read_bytes() == data


def test_the_file_of_other_weights_is_written_anew(tmp_path: Path) -> None:
    tiny_model("llama").save(tmp_path)
    first = answers(tmp_path, quantize="int8", quantize_cache=True)
    data = (tmp_path / "paged-int8.quantised").read_bytes()
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    begin = 8 + int.from_bytes(weights[:8], "little")
    values = np.frombuffer(weights, np.float32, offset=begin)
    values[:] = values[::-1].copy()
    (tmp_path / "model.safetensors").write_bytes(weights)
    second = answers(tmp_path, quantize="int8", quantize_cache=True)
    assert second == answers(tmp_path, quantize="int8") != first
    assert (tmp_path / "paged-int8.quantised").read_bytes() != data


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"quantize_cache=True: .*paged-int4.quantised cannot be written: .*No space"):
        answers(tmp_path, quantize="int4", quantize_cache=True)
    assert not [path for path in tmp_path.iterdir() if "quantised" in path.name]
    with pytest.raises(ValueError, match="it takes quantize='int8' or 'int4'"):
        answers(tmp_path, quantize_cache=True)
