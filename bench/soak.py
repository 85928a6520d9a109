# SPDX-License-Identifier: Apache-2.0
"""A storm of requests on a tiny random model, against a naive account of it.

Threads that come and go submit requests of a catalogue (prompts of any length, stop strings, grammars, several answers,
priorities) and wait for them, iterate, cancel, stop or drop them, in a pool of blocks that is too small for all. Then:
every finished answer is the one that the same request gets alone, every other one begins as that does; the engine has
counted as many requests as were submitted; no block is in use; memory and threads are what they were.

    python bench/soak.py --requests 100000 --seed 0 --json soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import paged
from paged.progress import ProgressBar

VOCAB, HIDDEN, LAYERS, HEADS, MAX_LEN = 288, 32, 2, 2, 160
BLOCK, MAX_SEQUENCES, NUM_BLOCKS = 4, 16, 96  # sixteen of the longest sequences would take 640 blocks
BYTES_PER_BLOCK = 2 * LAYERS * HIDDEN * 4 * BLOCK
ROUND = 2000  # requests between two moments at which nothing runs and everything is counted
THREADS, REQUESTS_OF_A_THREAD = 8, 50
GRAMMARS: list[dict[str, Any]] = [
    {"regex": "[ab]{1,30}c"},
    {"choice": ["yes", "no", "perhaps not today"]},
    {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
]


def save_model(folder: Path, seed: int) -> None:
    """Weights so large that a wrong key or value shows in the tokens, and a tokenizer of bytes."""
    import tokenizers
    from safetensors.numpy import save_file
    from tokenizers import decoders, models, pre_tokenizers

    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in _layer_shapes().items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    weights = {f"{name}.weight": _drawn(generator, shape) for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{n}" for layer in range(LAYERS) for n in _NORMS] + ["model.norm"]
    weights |= {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "rms_norm_eps": 1e-5,
        "max_position_embeddings": MAX_LEN, "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 1,
        "rope_theta": 100.0, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _layer_shapes() -> dict[str, tuple[int, int]]:
    attention = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    return attention | {"mlp.gate_proj": (48, HIDDEN), "mlp.up_proj": (48, HIDDEN), "mlp.down_proj": (HIDDEN, 48)}


def _drawn(generator: np.random.Generator, shape: tuple[int, int]) -> Any:
    return (generator.standard_normal(shape) * 1.2 / shape[1] ** 0.5).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """A request of the catalogue, and its answers when it runs alone."""

    prompt: list[int]
    params: paged.SamplingParams
    answers: list[paged.Completion]


def make_catalogue(folder: Path, size: int, generator: random.Random) -> list[Kind]:
    """Prompts share beginnings, so that the prefix cache has something to find."""
    stems = [[generator.randrange(2, VOCAB) for _ in range(60)] for _ in range(8)]
    kinds = []
    with paged.LLM(
        folder, num_threads=1, max_num_sequences=1, enable_prefix_caching=False, block_size=16
    ) as alone:  # fmt: skip
        for _ in range(size):
            own = [generator.randrange(2, VOCAB) for _ in range(generator.choice([1, 3, 10, 40]))]
            prompt = generator.choice(stems)[: generator.choice([0, 8, 30, 60])] + own
            params = draw_params(generator)
            kinds.append(Kind(prompt, params, alone.generate(prompt, params).outputs))
    for kind in kinds:
        for answer in kind.answers:
            assert answer.finish_reason in ("stop", "length"), answer
    return kinds


def draw_params(generator: random.Random) -> paged.SamplingParams:
    settings: dict[str, Any] = {
        "temperature": generator.choice([0.0, 0.7, 1.0, 2.0]),
        "seed": generator.randrange(2**32),
    }
    settings["max_tokens"] = generator.choice([1, 2, 5, 20, 50, None])
    if generator.random() < 0.3:
        settings["stop"] = generator.sample("abcdefgh", 2)
    if generator.random() < 0.2:
        settings |= {"top_p": 0.8, "top_k": 20}
    if generator.random() < 0.2:
        settings |= {"repetition_penalty": 1.2, "logit_bias": {5: 2.0}}
    if generator.random() < 0.1:
        grammar = paged.StructuredOutputsParams(**generator.choice(GRAMMARS))
        settings |= {"structured_outputs": grammar, "max_tokens": 50, "temperature": 1.0}
    elif generator.random() < 0.1:
        settings |= {"n": generator.randint(2, 4), "temperature": 1.0}
    return paged.SamplingParams(**settings)


@dataclass
class Account:
    """The naive one. Under its lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    num_submitted: int = 0  # answers, each of which the engine counts
    num_dropped: int = 0  # of those, whose end nobody has seen
    reasons: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def check(self, kind: Kind, answers: list[paged.Completion]) -> None:
        with self.lock:
            for answer, alone in zip(answers, kind.answers, strict=True):
                self.reasons[answer.finish_reason] += 1
                if not _agrees(answer, alone):
                    self.problems.append(f"{kind.prompt} {kind.params}: {answer}, but alone {alone}")


def _agrees(answer: paged.Completion, alone: paged.Completion) -> bool:
    if answer.finish_reason == alone.finish_reason and answer.token_ids == alone.token_ids:
        return answer.text == alone.text
    count = len(answer.token_ids)
    return answer.finish_reason in ("cancelled", "stop") and answer.token_ids == alone.token_ids[:count]


# -- what a client does with a request ---------------------------------------------------------------------------------

Answers = list[paged.Completion]
Style = Callable[[Any, random.Random], Answers | None]


def wait(handle: Any, generator: random.Random) -> Answers | None:
    return handle.result(300).outputs


def iterate(handle: Any, generator: random.Random) -> Answers | None:
    for output in getattr(handle, "outputs", [handle]):
        tokens = [token for chunk in output for token in chunk.token_ids]
        assert tokens == output.result(300).token_ids
    return handle.result(300).outputs


def wait_in_a_loop(handle: Any, generator: random.Random) -> Answers | None:
    async def result() -> Answers:
        return (await handle).outputs

    return asyncio.run(result())


def cancel(handle: Any, generator: random.Random) -> Answers | None:
    time.sleep(generator.choice([0.0, 0.0, 0.001, 0.01]))
    handle.cancel()
    return handle.result(300).outputs


def stop(handle: Any, generator: random.Random) -> Answers | None:
    time.sleep(generator.choice([0.0, 0.001, 0.01]))
    handle.stop()
    return handle.result(300).outputs


def drop(handle: Any, generator: random.Random) -> Answers | None:
    return None


def call_back(handle: Any, generator: random.Random) -> Answers | None:
    called: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle.add_done_callback(called.put)
    assert called.get(timeout=300) is handle
    return handle.result(0).outputs


STYLES: list[Style] = [wait, wait, iterate, iterate, wait_in_a_loop, cancel, stop, drop, call_back]


def run_client(llm: paged.LLM, kinds: list[Kind], account: Account, seed: int, count: int) -> None:
    """One thread: some requests at once, then what becomes of each."""
    generator = random.Random(seed)
    while count > 0:
        batch = [generator.choice(kinds) for _ in range(min(count, generator.randint(1, 12)))]
        count -= len(batch)
        handles = [llm.submit(kind.prompt, kind.params, priority=generator.randint(-2, 2)) for kind in batch]
        with account.lock:
            account.num_submitted += sum(len(kind.answers) for kind in batch)
        for kind in batch:
            style, handle = generator.choice(STYLES), handles.pop(0)
            answers = style(handle, generator)
            del handle
            with account.lock:
                account.styles[style.__name__] += 1
                account.num_dropped += len(kind.answers) if answers is None else 0
            if answers is not None:
                account.check(kind, answers)


# -- the storm ---------------------------------------------------------------------------------------------------------


def run_round(llm: paged.LLM, kinds: list[Kind], account: Account, seed: int, count: int) -> None:
    """Threads live for some requests each; in between the engine's own counts are looked at."""
    shares = [min(REQUESTS_OF_A_THREAD, count - start) for start in range(0, count, REQUESTS_OF_A_THREAD)]
    with ThreadPoolExecutor(THREADS) as pool:
        clients = [
            pool.submit(_in_a_new_thread, run_client, llm, kinds, account, seed + index, share)
            for index, share in enumerate(shares)
        ]
        for client in clients:
            _check_moment(llm, account)
            client.result()


def _in_a_new_thread(function: Callable[..., None], *arguments: Any) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function(*arguments)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _check_moment(llm: paged.LLM, account: Account) -> None:
    stats = llm.stats()
    is_whole = stats.num_used_blocks + stats.num_free_blocks == stats.num_blocks == NUM_BLOCKS
    if not is_whole or stats.num_running > MAX_SEQUENCES or stats.num_used_blocks < stats.num_running:
        with account.lock:
            account.problems.append(f"in the storm: {stats}")


def check_rest(llm: paged.LLM, account: Account) -> None:
    """Nothing runs: what the engine has counted is what the clients have."""
    deadline = time.monotonic() + 60
    while (stats := llm.stats()).num_finished < account.num_submitted and time.monotonic() < deadline:
        time.sleep(0.005)
    seen = account.reasons
    facts = {
        "all finished": stats.num_finished == account.num_submitted == sum(seen.values()) + account.num_dropped,
        "none failed": stats.num_failed == seen["error"] == 0,
        "cancelled": seen["cancelled"] <= stats.num_cancelled <= seen["cancelled"] + account.num_dropped,
        "nothing runs": stats.num_running == stats.num_waiting == 0,
        "no block is in use": stats.num_used_blocks == 0 and stats.num_free_blocks == NUM_BLOCKS,
    }
    account.problems += [
        f"at rest: not {name}: {stats}, {account.reasons}" for name, holds in facts.items() if not holds
    ]


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads_left(before: set[threading.Thread]) -> list[str]:
    """Of the engine's, in a while after it was closed; others, as that of a progress bar, are their own business."""
    added = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("paged")]
    for thread in added:
        thread.join(10)
    return [f"a thread is left: {thread}" for thread in added if thread.is_alive()]


@contextmanager
def open_llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(
        folder, num_threads=1, block_size=BLOCK, max_num_sequences=MAX_SEQUENCES, max_num_batched_tokens=64,
        kv_cache_bytes=NUM_BLOCKS * BYTES_PER_BLOCK,
    ) as llm:  # fmt: skip
        yield llm


def soak(num_requests: int, seed: int = 0, seconds: float = float("inf"), num_kinds: int = 1000) -> dict[str, Any]:
    """Runs it, and returns what happened; "problems" is empty if all was well."""
    account, memory, done = Account(), list[int](), 0
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        save_model(Path(name), seed)
        kinds = make_catalogue(Path(name), num_kinds, random.Random(seed))
        start, threads_before = time.monotonic(), set(threading.enumerate())
        with open_llm(Path(name)) as llm, ProgressBar(total=num_requests, desc="soak", unit="request") as bar:
            while done < num_requests and not account.problems and time.monotonic() - start < seconds:
                count = min(ROUND, num_requests - done)
                run_round(llm, kinds, account, seed * 1_000_003 + done, count)
                check_rest(llm, account)
                done += count
                bar.update(count)
                memory.append(resident_bytes())
            stats = llm.stats()
        account.problems += threads_left(threads_before)
    warm = memory[len(memory) // 4] if memory else 0
    grown = memory[-1] - warm if memory else 0
    if len(memory) >= 4 and grown > 4 << 20:
        account.problems.append(f"resident memory has grown by {grown} bytes from the first quarter on")
    return {
        "requests": done, "answers": account.num_submitted, "seconds": round(time.monotonic() - start, 1), "seed": seed,
        "finish_reasons": dict(account.reasons), "dropped": account.num_dropped, "styles": dict(account.styles),
        "preemptions": stats.num_preemptions, "steps": stats.num_steps, "generated_tokens": stats.num_generated_tokens,
        "cached_tokens": stats.num_cached_tokens, "resident_bytes": memory[-1] if memory else 0,
        "resident_bytes_grown": grown, "problems": account.problems[:20],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so many")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    result = soak(arguments.requests, arguments.seed, arguments.seconds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
