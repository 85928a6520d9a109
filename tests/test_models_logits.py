# SPDX-License-Identifier: Apache-2.0
"""Every architecture's logits are those of transformers, in float32."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paged.model_config import FAMILY_DEFAULTS, ModelConfig
from paged.models import ARCHITECTURES, record
from paged.program.passes import fuse
from paged.program.shapes import check_program
from paged.torch_backend import TorchExecutor
from tiny_models import VARIANTS, tiny_model

PROMPTS = {
    "smollm2-135m-instruct": "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "gemma-3-270m": "The history of the printing press begins in the fifteenth century, when",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_tiny_logits_equal_transformers(name: str) -> None:
    tiny = tiny_model(name)
    program = fuse(record(ModelConfig.from_hf(tiny.config), "float32"))
    check_program(program)
    token_ids = random.Random(0).choices(range(program.vocab_size), k=90)  # longer than windows and rope's old context
    expected = tiny.logits(token_ids)
    logits = TorchExecutor(program, tiny.weights, num_blocks=8).forward(token_ids)
    assert expected.std() > 0.5  # the comparison means something
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("name", PROMPTS)
def test_real_logits_equal_transformers(real_models: dict[str, Path], name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = real_models.get(name)
    if folder is None or not (folder / "config.json").is_file():
        pytest.skip(f"no Hugging Face folder of {name} among the real models")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    token_ids = transformers.AutoTokenizer.from_pretrained(folder)(PROMPTS[name])["input_ids"]
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    program = fuse(record(config, "float32"))
    with torch.no_grad():
        expected = model(torch.tensor([token_ids])).logits[0]
    logits = TorchExecutor(program, model.state_dict(), num_blocks=8).forward(token_ids)
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-4)


def test_bfloat16_program_stays_near_float32() -> None:
    tiny = tiny_model("gemma3")
    config = ModelConfig.from_hf(tiny.config)
    token_ids = list(range(3, 40))
    exact = TorchExecutor(fuse(record(config, "float32")), tiny.weights).forward(token_ids)
    rounded = TorchExecutor(fuse(record(config, "bfloat16")), tiny.weights).forward(token_ids)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, rounded.bfloat16().float())  # logits keep float32's digits
    assert (rounded - exact).std() < 0.05 * exact.std()


def test_registry_and_config_know_the_same_architectures() -> None:
    assert set(ARCHITECTURES) == set(FAMILY_DEFAULTS)


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"FooForCausalLM.*known: LlamaForCausalLM, .*Gemma3ForCausalLM"):
        ModelConfig.from_hf({**tiny_model("llama").config, "architectures": ["FooForCausalLM"]})


def test_recording_needs_no_torch() -> None:
    code = "import paged.models, paged.program.passes, paged.program.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_and_misshapen_weights_are_named() -> None:
    tiny = tiny_model("qwen2")
    program = record(ModelConfig.from_hf(tiny.config), "float32")
    name = "model.layers.1.self_attn.k_proj.bias"
    with pytest.raises(ValueError, match=f"lack {name}"):
        TorchExecutor(program, {key: value for key, value in tiny.weights.items() if key != name})
    with pytest.raises(ValueError, match=rf"{name} has shape \[3\], the program expects \[32\]"):
        TorchExecutor(program, {**tiny.weights, name: torch.zeros(3)})
