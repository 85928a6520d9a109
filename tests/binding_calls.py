# SPDX-License-Identifier: Apache-2.0
"""A valid call of every callable of paged._C, for the fuzzing of what their arguments may be."""

from __future__ import annotations

import functools
import operator
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from paged import _C

HIDDEN, VOCAB, ROWS, POSITIONS, BLOCKS, BLOCK = 16, 32, 3, 32, 4, 8
F32, I32 = np.float32, np.int32
NOT_CONSTRUCTIBLE = ("Request", "GuideQuestion", "GuideDesk", "EngineStats", "Trace", "ops.WeightMatrix",
                     "ReplayResult")  # fmt: skip
NEEDS_GPU = ("GpuExecutor", "gpu_properties", "gpu_free_bytes", "Program.add_stacked_matrix")
Arguments = dict[str, Any]
Call = tuple[Callable[..., Any], Arguments]


def floats(*shape: int) -> Any:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=F32).reshape(shape)


def ints(*values: int) -> Any:
    return np.array(values, I32)


THREADS = _C.ThreadPool(2)


def matrix(rows: int = HIDDEN) -> Any:
    return _C.ops.pack(THREADS, floats(rows, HIDDEN), "float32", rows, HIDDEN)


def cache(**changes: Any) -> Arguments:
    shape = {"num_blocks": BLOCKS, "block_size": BLOCK, "num_kv_heads": 2, "head_dim": 8}
    return {"storage": np.zeros(BLOCKS * 2 * 2 * BLOCK * 8, F32), **shape, **changes}


def value(offset: int, cols: int = HIDDEN, rows: str = "tokens") -> Any:
    return _C.Value(offset=offset, rows=rows, cols=cols, row_stride=cols, dtype="float32")


PROGRAM: Arguments = {
    "num_layers": 1, "num_kv_heads": 2, "head_dim": 8, "dtype": "float32", "arena_bytes": 8192, "max_tokens": 16,
    "max_logits_rows": 4, "vocab_size": VOCAB, "max_positions": POSITIONS,
}  # fmt: skip
STRINGS = b"\1" + bytes(7) + b"a" + b"\2" + bytes(7) + b"bc"
ATTENTION: Arguments = {"num_heads": 2, "head_dim": 8, "rotary_dim": 8, "scale": 0.3}


def program_with_weights() -> Any:
    program = _C.Program(**PROGRAM)
    for rows in (VOCAB, HIDDEN, HIDDEN):
        data = floats(rows, HIDDEN).view(np.uint8).reshape(-1)
        program.add_matrices(sources=[(data, "float32", rows, HIDDEN, None)], threads=THREADS)
    for size in (POSITIONS * 8, HIDDEN, 2 * 8, 2):
        program.add_vector(floats(size))
    return program


def op(program: Any, kind: str, inputs: list[int], output: Any, **changes: Any) -> Call:
    defaults: Arguments = {"matrices": [], "vector": -1, "head_norms": -1, "attributes": {}}
    outputs = [] if output is None else [output]
    return program.add_op, {
        "kind": kind, "inputs": [value(at) for at in inputs], "outputs": outputs, **defaults, **changes
    }  # fmt: skip


def ops_of(program: Any) -> list[Call]:
    return [
        op(program, "embedding", [], value(0), matrices=[0]),
        op(program, "linear", [0], value(1024), matrices=[1], vector=1),
        op(program, "rms_norm", [0], value(2048), vector=1, attributes={"eps": 1e-5}),
        op(program, "add", [0, 1024], value(3072)),
        op(program, "rope_store_kv", [1024, 2048, 3072], value(4096), vector=0, head_norms=2, attributes=ATTENTION),
        op(program, "attention", [4096], value(5120), vector=3, attributes=ATTENTION),
        op(program, "gather_rows", [5120], value(6144, rows="logits")),
        (program.add_op, {
            "kind": "linear", "inputs": [value(6144, rows="logits")], "outputs": [value(6400, VOCAB, "logits")],
            "matrices": [0], "vector": -1, "head_norms": -1, "attributes": {},
        }),
    ]  # fmt: skip


def program() -> Any:
    result = program_with_weights()
    for add, arguments in ops_of(result):
        add(**arguments)
    return result


def executor_arguments() -> Arguments:
    return {
        "program": program(),
        "max_seq_len": POSITIONS,
        "num_blocks": BLOCKS,
        "block_size": BLOCK,
        "threads": THREADS,
    }


def executor() -> Any:
    return _C.ProgramExecutor(**executor_arguments())


def batch() -> Arguments:
    """Two sequences: one token after four, and two first ones."""
    return {
        "token_ids": ints(1, 2, 3), "positions": ints(4, 0, 1), "slot_mapping": ints(4, 16, 17),
        "query_start": ints(0, 1, 3), "seq_lens": ints(5, 2), "block_tables": ints(0, 1, 2, 3).reshape(2, 2),
        "logits_rows": ints(0, 2),
    }  # fmt: skip


def config() -> Any:
    result = _C.SchedulerConfig()
    result.num_blocks, result.block_size, result.max_num_sequences = BLOCKS, BLOCK, 4
    result.max_num_batched_tokens, result.max_model_len = 16, POSITIONS
    return result


def engine_arguments() -> Arguments:
    table = _C.TokenTable(bytes(range(97, 97 + VOCAB)), list(range(VOCAB + 1)), np.zeros(VOCAB, np.bool_))
    return {"config": config(), "executor": executor(), "threads": THREADS, "token_table": table}


def params() -> Any:
    result = _C.SamplingParams()
    result.max_tokens, result.temperature, result.seed = 3, 1.0, 7
    return result


def replay_config() -> Any:
    result = _C.ReplayConfig()
    result.num_blocks, result.max_model_len = 16, 40
    return result


def replay_arguments() -> Arguments:
    """An agent of two turns, the first of which spawns another."""
    turns = [[-1, 4, 2, 1.0, 0.5, 1, 1], [3, 2, 1, 0.0, -1.0, 0, -1], [-1, 1, 1, 0.0, -1.0, 0, -1]]
    agents = np.array([[1, 0, 3, 2], [0, 0, 0, 1]])
    return {
        "agents": agents, "turns": np.array(turns), "config": replay_config(), "policy": "hazard", "ttl_seconds": 2.0
    }  # fmt: skip


def set_and_replay(name: str) -> Callable[..., None]:
    def call(value: Any) -> None:
        arguments = replay_arguments()
        setattr(arguments["config"], name, value)
        if arguments["config"].num_blocks <= 1 << 16 and arguments["config"].max_num_sequences <= 1 << 16:
            _C.replay(**arguments)

    return call


class Model:
    """The objects of one example, made when a call needs them."""

    def __init__(self) -> None:
        self.engine = _C.Engine(**engine_arguments())
        self.request = self.engine.submit([1, 2], params())
        self.guided = self.engine.submit([1, 2], params(), guide=("token", 5))
        self.desk = self.engine.guide_desk

    def question(self) -> Any:
        os.read(self.desk.read_end, 1)
        return self.desk.next()

    def close(self) -> None:
        self.engine.close()


def op_calls() -> dict[str, Call]:
    o, kv = _C.ops, _C.ops.KvCache(**cache())
    x, out, table = floats(ROWS, HIDDEN), np.zeros((ROWS, HIDDEN), F32), floats(POSITIONS, 8)
    common: Arguments = {"threads": THREADS}
    rows = {"positions": ints(0, 1, 9), "table": table}
    return {
        "ops.isa": (o.isa, {}),
        "ops.KvCache": (o.KvCache, cache()),
        "ops.AttentionOptions": (o.AttentionOptions, {"scale": 0.5, "window": 0, "softcap": 0.0}),
        "ops.SamplingRow": (o.SamplingRow, {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "seed": 1, "position": 2}),
        "ops.pack": (o.pack, common | {
            "source": floats(4, 8), "type": "float32", "rows": 4, "cols": 8, "row_order": ints(3, 2, 1, 0),
        }),
        "ops.quantize": (o.quantize, common | {
            "source": floats(HIDDEN, 32), "type": "float32", "rows": HIDDEN, "cols": 32,
            "out": np.zeros(HIDDEN * 34, np.uint8), "target": "q8_0",
        }),
        "ops.unpack": (o.unpack, common | {"matrix": matrix(), "out": np.zeros((HIDDEN, HIDDEN), F32)}),
        "ops.linear": (o.linear, common | {
            "x": x, "parts": [matrix(), matrix(8)], "out": np.zeros((ROWS, 24), F32), "bias": floats(24),
        }),
        "ops.embedding": (o.embedding, common | {
            "token_ids": ints(0, 15, 3), "table": matrix(), "out": out, "scale": 2.0,
        }),
        "ops.rms_norm": (o.rms_norm, common | {"x": x, "weight": floats(8), "eps": 1e-5, "out": out}),
        "ops.add_rms_norm": (o.add_rms_norm, common | {
            "residual": x, "delta": x, "weight": floats(HIDDEN), "eps": 1e-5, "residual_out": x.copy(), "out": out,
        }),
        "ops.add": (o.add, common | {"a": x, "b": x, "out": out}),
        "ops.gated_activation": (o.gated_activation, common | {"gate": x, "up": x, "activation": "silu", "out": out}),
        "ops.softcap": (o.softcap, common | {"x": x, "cap": 5.0, "out": out}),
        "ops.gather_rows": (o.gather_rows, common | {"x": x, "rows": ints(2, 0, 2), "out": out}),
        "ops.rope": (o.rope, common | {"x": x, **rows, "head_dim": 8, "out": out, "interleaved": False}),
        "ops.store_kv": (o.store_kv, common | {"k": x, "v": x, "slot_mapping": ints(-1, 0, 31), "cache": kv}),
        "ops.rope_store_kv": (o.rope_store_kv, common | {
            "q": x, "k": x.copy(), "v": x, **rows, "slot_mapping": ints(-1, 0, 31), "cache": kv, "q_out": out,
            "interleaved": True,
        }),
        "ops.copy_blocks": (o.copy_blocks, common | {"cache": kv, "source": ints(0, 1), "destination": ints(2, 3)}),
        "ops.attention": (o.attention, common | {
            "q": x, "cache": kv, "query_start": ints(0, 1, 3), "seq_lens": ints(5, 2),
            "block_tables": ints(0, 1, 2, 3).reshape(2, 2), "out": out, "num_heads": 2,
            "options": o.AttentionOptions(0.5, 0, 0.0), "sinks": floats(2),
        }),
        "ops.sample": (o.sample, common | {
            "logits": floats(2, VOCAB), "rows": [o.SamplingRow(1.0, 0.9, 3), o.SamplingRow()], "token_ids": ints(0, 0),
        }),
    }  # fmt: skip


def program_calls() -> dict[str, Call]:
    prog, run = program_with_weights(), executor()
    raw = floats(4, 8).view(np.uint8).reshape(-1)
    gpu = executor_arguments() | {"max_num_sequences": 4, "device": 0, "batch_invariant": False, "blas_folders": []}
    del gpu["threads"]
    value_arguments = {"offset": 0, "rows": "tokens", "cols": 4, "row_stride": 4, "dtype": "float32"}
    calls: dict[str, Call] = {
        "skip_strings": (_C.skip_strings, {"data": STRINGS, "position": 0, "count": 2}),
        "read_strings": (_C.read_strings, {"data": STRINGS, "position": 0, "first": 1, "count": 1}),
        "ThreadPool": (_C.ThreadPool, {"num_threads": 1}),
        "Value": (_C.Value, value_arguments),
        "Program": (_C.Program, PROGRAM),
        "Program.add_matrices": (prog.add_matrices, {
            "sources": [(raw, "float32", 4, 8, ints(3, 2, 1, 0))], "threads": THREADS,
        }),
        "Program.add_stacked_matrix": (prog.add_stacked_matrix, {
            "sources": [(raw, "float32", 4, 8, None)], "dtype": "float32", "gpu": 0, "threads": THREADS,
        }),
        "Program.add_vector": (prog.add_vector, {"values": floats(4)}),
        "ProgramExecutor": (_C.ProgramExecutor, executor_arguments()),
        "ProgramExecutor.run": (run.run, batch()),
        "ProgramExecutor.set_profiling": (run.set_profiling, {"enabled": True}),
        "GpuExecutor": (_C.GpuExecutor, gpu),
        "gpu_runtime": (_C.gpu_runtime, {}),
        "gpu_devices": (_C.gpu_devices, {}),
        "gpu_properties": (_C.gpu_properties, {"device": 0}),
        "gpu_free_bytes": (_C.gpu_free_bytes, {"device": 0}),
        "SchedulerConfig": (_C.SchedulerConfig, {}),
        "SchedulerConfig.set_policy": (config().set_policy, {"name": "ttl", "ttl": 1.0}),
        "PolicyDesk": (_C.PolicyDesk, {"fallback": "lru", "patience": 1.0}),
        "SamplingParams": (_C.SamplingParams, {}),
        "NewsQueue": (_C.NewsQueue, {}),
        "TokenTable": (_C.TokenTable, {
            "bytes": b"abc", "offsets": np.array([0, 1, 3]), "is_special": np.array([True, False]),
        }),
        "Engine": (_C.Engine, engine_arguments()),
        "replay": (_C.replay, replay_arguments()),
        "ReplayConfig": (_C.ReplayConfig, {}),
        "ReplayConfig.set_device": (replay_config().set_device, {
            "base": 1.0, "per_token": 0.1, "per_token_pair": 0.0, "decode_base": 1.0, "per_decoded_context_token": 0.0,
        }),
        "ReplayConfig.set_link": (replay_config().set_link, {"per_transfer": 0.001, "per_block": 0.001}),
        "ReplayConfig.set_disk": (
            replay_config().set_disk, {"per_transfer": 0.001, "per_block_read": 0.001, "per_block_written": 0.001}
        ),
        **{name: (operator.attrgetter(name)(_C), {}) for name in NOT_CONSTRUCTIBLE},
    }  # fmt: skip
    for name in settable(_C.ReplayConfig):
        calls[f"ReplayConfig.{name}="] = (set_and_replay(name), {"value": getattr(replay_config(), name)})
    calls |= {f"Program.add_op of {call[1]['kind']} {i}": call for i, call in enumerate(ops_of(prog))}
    return calls


def engine_calls(model: Model) -> dict[str, Call]:
    engine, request, desk = model.engine, model.request, model.desk
    queue, closed = _C.NewsQueue(), _C.NewsQueue()
    closed.close()
    submit = {
        "prompt": [1, 2],
        "sampling": params(),
        "priority": 0,
        "cache_salt": "s",
        "guide": ("mask", 3),
        "follows": 0,
    }
    question = {"question": model.question}
    policy, closed_policy = _C.PolicyDesk("lru", 1.0), _C.PolicyDesk("lru", 1.0)
    closed_policy.close()
    session = {"engine": engine, "id": _C.session_open(engine, "t", 1.0)}
    calls: dict[str, Call] = {
        "session_open": (_C.session_open, {"engine": engine, "tenant": "t", "weight": 1.0}),
        "session_restore": (
            _C.session_restore, {"engine": engine, "tenant": "t", "weight": 1.0, "tokens": [3, 4]},
        ),
        "block_layout": (_C.block_layout, {"engine": engine}),
        "session_read_block": (_C.session_read_block, session | {"index": 0}),
        "session_write_block": (_C.session_write_block, session | {"bytes": bytes(1024)}),
        "session_fork": (_C.session_fork, session | {"weight": 1.0}),
        "session_close": (_C.session_close, session),
        "session_drop": (_C.session_drop, session),
        "session_pause": (_C.session_pause, session | {"tool": "a", "quantiles": [(0.5, 1.0)]}),
        "session_progress": (_C.session_progress, session | {"share": 0.5}),
        "session_eta": (_C.session_eta, session | {"seconds": 1.0}),
        "session_rewind": (_C.session_rewind, session | {"num_tokens": 0, "num_again": 0}),
        "session_pin": (_C.session_pin, session | {"seconds": 1.0, "num_blocks": 3}),
        "session_demote": (_C.session_demote, session | {"tier": "host"}),
        "session_prefetch": (_C.session_prefetch, session),
        "session_report": (_C.session_report, session),
        "session_tokens": (_C.session_tokens, session),
        "session_length": (_C.session_length, session),
        "set_tenant_floor": (_C.set_tenant_floor, {"engine": engine, "tenant": "t", "num_blocks": 1}),
        "tenants": (_C.tenants, {"engine": engine}),
        "Engine.submit": (engine.submit, submit),
        "Engine.cancel": (engine.cancel, {"id": request.id}),
        "Engine.stop": (engine.stop, {"id": request.id}),
        "Engine.close": (engine.close, {}),
        "Engine.stats": (engine.stats, {}),
        "Engine.start_trace": (engine.start_trace, {"capacity": 100}),
        "Engine.stop_trace": (engine.stop_trace, {}),
        "PolicyDesk.wait": (closed_policy.wait, {}),
        "PolicyDesk.propose": (policy.propose, {
            "ticket": (1, 1, 0.0, 0.0), "score": (1.0, True, 2.0), "tier": "device", "admits": True,
        }),
        "PolicyDesk.close": (policy.close, {}),
        "PolicyDesk.count_failed": (policy.count_failed, {}),
        "NewsQueue.wait": (closed.wait, {}),
        "NewsQueue.close": (queue.close, {}),
        "Request.wait": (request.wait, {"timeout": 0.01}),
        "Request.wait_finished": (request.wait_finished, {"timeout": 60.0}),
        "Request.ready": (request.ready, {"until_finished": True}),
        "Request.notify": (request.notify, {"queue": queue, "until_finished": False}),
        "Request.take": (request.take, {}),
        "Request.answer": (request.answer, {}),
        "Request.prompt_scores": (request.prompt_scores, {}),
        "GuideDesk.next": (desk.next, {}),
        "GuideDesk.answer_mask": (desk.answer_mask, question | {"mask": np.full(1, -1, np.int32).view(np.uint32)}),
        "GuideDesk.answer_anything": (desk.answer_anything, question),
        "GuideDesk.answer_stop": (desk.answer_stop, question),
        "GuideDesk.answer_token": (desk.answer_token, question | {"token": 3}),
        "GuideDesk.answer_error": (desk.answer_error, question | {"text": "no"}),
        "GuideDesk.sample": (desk.sample, question | {"logits": floats(VOCAB)}),
    }  # fmt: skip
    for kind, default in ((_C.SchedulerConfig, config()), (_C.SamplingParams, params())):
        for name in settable(kind):
            calls[f"{kind.__name__}.{name}="] = (set_and_use(model, kind, name), {"value": getattr(default, name)})
    return calls


def settable(kind: type) -> list[str]:
    return [name for name, member in vars(kind).items() if isinstance(member, property) and member.fset is not None]


def set_and_use(model: Model, kind: type, name: str) -> Callable[..., None]:
    """Sets the attribute and makes an engine, or a request, with it."""

    def call(value: Any) -> None:
        target = config() if kind is _C.SchedulerConfig else params()
        if name not in ("temperature", "max_tokens"):
            value = value[:10_000] if isinstance(value, str | bytes | list) else value
        setattr(target, name, value)
        if kind is _C.SamplingParams:
            model.engine.cancel(model.guided.id)  # else it may hold the blocks that the other needs
            assert model.engine.submit([1], target).wait_finished(60)
        elif all(getattr(target, size) <= 1 << 16 for size in ("num_blocks", "max_num_sequences", "max_model_len")):
            _C.Engine(**engine_arguments() | {"config": target}).close()

    return call


def all_calls() -> dict[str, Callable[[], tuple[Call, Model | None]]]:
    """Each makes its call anew, with the model it belongs to where there is one."""
    makers: dict[str, Callable[[], tuple[Call, Model | None]]] = {}
    for calls in (op_calls, program_calls):
        for name in calls():
            makers[name] = lambda calls=calls, name=name: (calls()[name], None)  # type: ignore[misc]

    def of_engine(name: str) -> tuple[Call, Model]:
        model = Model()
        return engine_calls(model)[name], model

    for name in engine_calls(Model()):
        makers[name] = functools.partial(of_engine, name)
    return makers


def bound_callables() -> set[str]:
    """Every function, class, method and settable attribute of the module."""
    found = set()
    for prefix, module in (("", _C), ("ops.", _C.ops)):
        for name, member in vars(module).items():
            if name.startswith("_") or isinstance(member, types.ModuleType):
                continue
            if isinstance(member, type) and issubclass(member, Exception):
                continue
            found.add(prefix + name)
            if name == "GpuExecutor":
                continue  # only where there is a GPU; its methods are those of ProgramExecutor
            if isinstance(member, type):
                methods = [key for key, m in vars(member).items() if callable(m) and not key.startswith("_")]
                found |= {f"{prefix}{name}.{key}" for key in methods}
                found |= {f"{prefix}{name}.{key}=" for key in settable(member)}
    return found
