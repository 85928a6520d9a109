# SPDX-License-Identifier: Apache-2.0
"""Every pass, alone and together with the others, leaves the logits as they are."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from paged.model_config import ModelConfig
from paged.models import record
from paged.program import passes
from paged.program.builder import Builder
from paged.program.ir import Attention, KvCacheSpec, Program
from paged.program.rope_tables import RopeSpec
from paged.program.shapes import check_program
from paged.torch_backend import StepBatch, TorchExecutor
from paged.torch_backend.step_batch import prompt_batch
from tiny_models import VARIANTS, TinyModel, tiny_model

CHOICES = [*((apply,) for apply in passes.PASSES), passes.PASSES, passes.PASSES[::-1]]
NEED_OTHERS = {passes.fuse_head_norms, passes.fuse_gated_linear}  # find nothing before the others ran
FUSED_LAYER = {
    "linear": 3,
    "rope_store_kv": 1,
    "attention": 1,
    "add_rms_norm": 2,
    "gated_linear": 1,
}


def recorded(tiny: TinyModel) -> Program:
    return record(ModelConfig.from_hf(tiny.config), "float32")


def last_rows_batch(token_ids: list[int]) -> StepBatch:
    """A prompt that asks for the logits of its last position and of one in the middle."""
    batch = prompt_batch(token_ids, 16)
    return replace(batch, logits_rows=batch.positions[[len(token_ids) - 1, len(token_ids) // 2]])


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "+".join(apply.__name__ for apply in chosen))
@pytest.mark.parametrize("name", VARIANTS)
def test_fused_equals_unfused(name: str, chosen: tuple[passes.Pass, ...]) -> None:
    tiny = tiny_model(name)
    plain = recorded(tiny)
    fused = plain
    for apply in chosen:
        fused = apply(fused)
        check_program(fused)
    assert len(fused.ops) != len(plain.ops) or set(chosen) < NEED_OTHERS
    batch = last_rows_batch(random.Random(1).choices(range(plain.vocab_size), k=40))
    for dtype in (torch.float32, torch.float64):
        expected = TorchExecutor(plain, tiny.weights, dtype=dtype).run(batch)
        logits = TorchExecutor(fused, tiny.weights, dtype=dtype).run(batch)
        # A matrix product over fewer rows may sum in another order; everything else is the same arithmetic.
        atol = 0.0 if passes.gather_early not in chosen else 2e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=atol)


def test_a_llama_layer_fuses_to_eight_ops() -> None:
    program = passes.fuse(recorded(tiny_model("llama")))
    assert Counter(op.kind for op in program.ops if op.layer == 1) == FUSED_LAYER


def test_the_norms_of_heads_become_part_of_the_rotation() -> None:
    for name, num_norms in (("qwen3", 0), ("gemma3", 2)):
        program = passes.fuse(recorded(tiny_model(name)))
        expected = Counter({**FUSED_LAYER, "rms_norm": num_norms})
        assert Counter(op.kind for op in program.ops if op.layer == 1) == +expected
        (rope,) = (op for op in program.ops if op.layer == 1 and op.kind == "rope_store_kv")
        assert len(rope.weights) == 3


def test_nothing_but_the_gather_reads_token_rows_after_the_last_attention() -> None:
    program = passes.fuse(recorded(tiny_model("qwen2")))
    last = max(index for index, op in enumerate(program.ops) if op.kind == "attention")
    tail = program.ops[last + 1 :]
    assert sum(op.kind == "gather_rows" for op in tail) == 2  # the attention's result and the residual
    for op in tail:
        assert all(program.values[out].rows == "logits" for out in op.outputs)


def test_fusing_twice_changes_nothing() -> None:
    program = passes.fuse(recorded(tiny_model("gemma3-softcap")))
    assert passes.fuse(program) == program


def test_biases_follow_their_parts() -> None:
    program = passes.fuse(recorded(tiny_model("llama-bias")))
    qkv = next(op for op in program.ops if op.kind == "linear")
    names = [program.weights[weight].name.split("self_attn.")[1] for weight in qkv.weights]
    assert names == ["q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"]


def unusual_program(*, keys_escape: bool, same_rotation: bool) -> Program:
    """One layer whose rotated keys are read twice, or whose q and k turn differently: the fusion must stay away."""
    b = Builder(KvCacheSpec(1, 2, 8), vocab_size=11, max_positions=32, dtype="float32")
    x = b.embedding("embed", 16)
    spec = RopeSpec("default", 100.0, 8)
    q, v = b.linear(x, "q", 16), b.linear(x, "v", 16)
    k = b.rope(b.linear(x, "k", 16), spec, 8)
    q = b.rope(q, spec if same_rotation else replace(spec, theta=50.0), 8)
    out = b.attention(q, k, v, Attention(0, 2, 1.0))
    return b.finish(b.logits(b.add(out, k) if keys_escape else out, "head"))


@pytest.mark.parametrize(("keys_escape", "same_rotation"), [(False, True), (True, True), (False, False)])
def test_rope_fusion_keeps_away_from_what_it_cannot_do(keys_escape: bool, same_rotation: bool) -> None:
    program = passes.fuse(unusual_program(keys_escape=keys_escape, same_rotation=same_rotation))
    check_program(program)
    fused = any(op.kind == "rope_store_kv" for op in program.ops)
    assert fused == (same_rotation and not keys_escape)


def test_gather_stays_where_attention_still_reads_all_rows() -> None:
    """A second layer reads the first one's rows: only the tail after its attention may shrink."""
    b = Builder(KvCacheSpec(2, 1, 8), vocab_size=11, max_positions=32, dtype="float32")
    x = b.embedding("embed", 8)
    for layer in b.layers():
        x = b.add(x, b.attention(x, x, x, Attention(layer, 1, 1.0)))
    program = passes.gather_early(b.finish(b.logits(x, "head")))
    check_program(program)
    rows = [program.values[op.outputs[0]].rows for op in program.ops if op.outputs]
    assert rows == ["tokens", "tokens", "tokens", "tokens", *["logits"] * 4]


def test_recording_and_fusing_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig.from_hf({**tiny_model("llama").config, "num_hidden_layers": 32})
    samples = []
    for _ in range(5):
        start = time.perf_counter()
        passes.fuse(record(config, "float32"))
        samples.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f" [record and fuse 32 layers: {1e3 * sorted(samples)[2]:.1f} ms]", end="")
