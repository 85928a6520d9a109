# SPDX-License-Identifier: Apache-2.0
"""The host's tier: answers are those of an engine without one, whatever moves; all memory comes back."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

import paged
from backends import open_llm, until
from tiers import GREEDY, ids, tiered


def test_demoted_evicted_and_resumed(folder: Path, device: str, oracle: paged.LLM) -> None:
    with tiered(folder, device) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens = session.token_ids
        resident = session.explain().resident_bytes
        until(lambda: session.demote("host").status == "accepted")
        until(lambda: session.explain().host_bytes == resident)
        for seed in range(2, 6):  # others need the whole pool
            llm.generate(ids(seed, 150), GREEDY)
        assert session.explain().device_bytes < resident
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids
        assert answer.num_cached_tokens == 16 * (resident // llm._bytes_per_block), "all came back from the host"
        assert session.explain().misses == ()
        stats = llm.stats()
        assert stats.num_bytes_loaded > 0 and stats.num_bytes_stored >= resident


def test_prefetch(folder: Path, device: str, oracle: paged.LLM) -> None:
    with tiered(folder, device) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens, resident = session.token_ids, session.explain().resident_bytes
        until(lambda: session.demote().status == "accepted")
        for seed in range(2, 6):
            llm.generate(ids(seed, 150), GREEDY)
        gone = resident - session.explain().device_bytes
        assert gone > 0
        assert session.prefetch().bytes > 0
        until(lambda: session.prefetch().status == "accepted" and session.explain().device_bytes == resident)
        assert session.explain().resident_bytes == resident
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids


def test_plain_requests_profit(folder: Path, device: str, oracle: paged.LLM) -> None:
    """What the pool has no room for is on the host before it goes."""
    prompts = [ids(seed, 100) for seed in range(6)]  # 42 blocks for a pool of 24
    expected = [completion.token_ids for completion in oracle.generate(prompts, GREEDY, use_tqdm=False)]
    with tiered(folder, device) as llm:
        num_cached = 0
        for _ in range(4):
            for prompt, tokens in zip(prompts, expected, strict=True):
                completion = llm.generate(prompt, GREEDY)
                assert completion.token_ids == tokens
                num_cached += completion.num_cached_tokens
        assert llm.stats().num_bytes_loaded > 0 and num_cached > 0


def test_a_small_tier_under_a_storm(folder: Path, device: str, oracle: paged.LLM) -> None:
    """Threads with sessions that are demoted, fetched, forked, closed and cancelled in a pool and a tier too small."""
    errors: list[BaseException] = []

    def run(llm: paged.LLM, seed: int) -> None:
        rng = random.Random(seed)
        try:
            with llm.session() as session:
                tokens: list[int] = []
                for turn in range(6):
                    if len(tokens) > 120:
                        session.rewind(40)
                        tokens = tokens[:40]
                    added = ids(100 * seed + turn, rng.randint(5, 40))
                    answer = session.generate(added, GREEDY).token_ids
                    assert answer == oracle.generate(tokens + added, GREEDY).token_ids
                    tokens += added + answer
                    for _ in range(rng.randint(0, 3)):
                        rng.choice([session.demote, session.prefetch, lambda: session.pause("t", 0.01)])()
                    if rng.random() < 0.3:
                        with session.fork() as child:
                            child.prefetch()
                            child.stream([5, 6], GREEDY).cancel()
        except BaseException as error:
            errors.append(error)

    with tiered(folder, device, host_blocks=20) as llm:
        threads = [threading.Thread(target=run, args=(llm, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert llm.stats().num_free_blocks <= llm.stats().num_blocks
        until(lambda: llm.stats().num_running == 0)


def test_closed_while_blocks_move(folder: Path, device: str) -> None:
    for seed in range(3):
        llm = tiered(folder, device)
        session = llm.session()
        session.generate(ids(seed, 120), GREEDY)
        session.demote()
        session.close()
        llm.close()
        assert llm.closed


def test_without_a_tier_commands_are_rejected(oracle: paged.LLM, folder: Path, device: str) -> None:
    with oracle.session() as session:
        session.generate([5, 6], GREEDY)
        assert "host_cache" in session.demote().reason and session.demote().status == "rejected"
        assert session.prefetch().status == "rejected"
        with pytest.raises(ValueError, match="tier takes"):
            session.demote("moon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds 0 blocks"):
        open_llm(folder, device, host_cache=1)
    with pytest.raises(ValueError, match="has no host tier"):
        open_llm(folder, "torch", host_cache=1 << 20)
    with pytest.raises(ValueError, match="enable_prefix_caching"):
        open_llm(folder, device, host_cache=1 << 20, enable_prefix_caching=False)
