# SPDX-License-Identifier: Apache-2.0
"""What commands of sessions answer: accepted, clipped, deferred or rejected, with bytes, until and reason; and what
`explain` and `tenants` say then."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import paged
from step_gate import gated_llm

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
# A pool of 40 blocks of 4 tokens. A step may need 8 of them, the longest sequence 25.
SIZES = {"block_size": 4, "max_num_batched_tokens": 16, "max_num_sequences": 4, "max_model_len": 96}
NUM_BLOCKS, STEP_BLOCKS, SEQUENCE_BLOCKS = 40, 8, 25


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[paged.LLM]:
    with paged.LLM(folder, dtype="float32", num_threads=1, block_size=4) as big:
        block = big._bytes_per_block
    with paged.LLM(folder, dtype="float32", num_threads=1, kv_cache_bytes=NUM_BLOCKS * block, **SIZES) as llm:
        assert llm.stats().num_blocks == NUM_BLOCKS
        yield llm


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def test_a_lease_is_clipped_to_what_may_be_leased(llm: paged.LLM) -> None:
    block = llm._bytes_per_block
    with llm.session() as first, llm.session() as second:
        assert first.pin(5.0).reason == "it has no block yet"
        first.generate(ids(1, 40), GREEDY)
        second.generate(ids(2, 40), GREEDY)
        whole = first.pin(5.0)
        assert (whole.status, whole.bytes, whole.reason) == ("accepted", 10 * block, "")
        before = time.monotonic()
        clipped = second.pin(60.0, budget=1000 * block)
        assert clipped.status == "clipped" and clipped.bytes == (NUM_BLOCKS - STEP_BLOCKS - 10) * block
        assert clipped.until is not None and before + 60 <= clipped.until <= time.monotonic() + 60
        assert "wanted are 1000 blocks" in clipped.reason
        assert second.explain().leased_bytes == clipped.bytes and 0 < second.explain().lease_left <= 60
        with llm.session(parent=first) as third:
            refused = third.pin(1.0)
            assert (refused.status, refused.bytes, refused.until) == ("rejected", 0, None)
            assert refused.reason.startswith("all that may be leased is")
        assert second.pin(1.0, budget=block - 1).reason == "the budget holds no block"
        assert second.pin(0.01, budget=3 * block).bytes == 3 * block
        time.sleep(0.02)
        assert second.explain().leased_bytes == 0 and not second.explain().lease_left


def test_a_pause_while_the_turn_runs_is_deferred(folder: Path) -> None:
    with gated_llm(folder) as (llm, gate), llm.session() as session:
        gate.allow(3)
        handle = session.stream(ids(3, 6), paged.SamplingParams(max_tokens=8, ignore_eos=True))
        next(handle)
        gate.open()
        receipt = session.pause("a", 2.0)
        # Whichever came first, the end of the turn or the command: it waits for the tool once the turn has ended.
        assert receipt.status in ("deferred", "accepted")
        assert (receipt.reason == "when its turn has ended") == (receipt.status == "deferred")
        handle.result()
        assert session.explain().state == "paused" and session.explain().tool == "a"


def test_what_is_rejected_says_why_and_changes_nothing(llm: paged.LLM) -> None:
    session = llm.session()
    session.generate(ids(4, 10), GREEDY)
    before = session.token_ids
    for receipt, reason in (
        (session.progress(0.5), "it does not wait for a tool"),
        (session.eta(1.0), "it does not wait for a tool"),
        (session.rewind(12), "it has 11 tokens, cannot go back to 12"),
        (session.rewind(-1), "it has 11 tokens, cannot go back to -1"),
    ):
        assert (receipt.status, receipt.bytes, receipt.until, receipt.reason) == ("rejected", 0, None, reason)
    session.pause("a")
    assert session.progress(2.0).reason == "progress is a share in (0, 1]"
    assert session.eta(-1.0).reason == "an eta is 0 to 1e9 seconds"
    assert session.token_ids == before
    closed = session.close()
    assert closed.status == "accepted" and closed.bytes == 2 * llm._bytes_per_block
    for receipt in (session.close(), session.pause("a"), session.rewind(0), session.pin(1.0), session.eta(1.0)):
        assert receipt.status == "rejected" and receipt.reason.endswith("is closed")


def test_every_miss_says_its_cause(llm: paged.LLM) -> None:
    with llm.session() as session:
        session.generate(ids(5, 40), GREEDY)
        assert session.edit((8, 9), [7, 8]).status == "accepted"
        assert len(session.token_ids) == 42, "it waits for what is computed again"
        (edited,) = session.explain().misses
        assert (edited.turn, edited.cause, edited.num_tokens, edited.by) == (2, "edited", 31, 0)
        assert str(edited) == "turn 2 computed 31 tokens again: tokens before them were changed"
    # Held as long as it is expected, or not at all: 18 blocks of 40, and a request that needs 24.
    for weight, cause, words in (
        (1e9, "evicted", "while the session was expected"),
        (1e-9, "expired", "when the session was held no more"),
    ):
        with llm.session(weight=weight) as session:
            session.generate(ids(6, 72), GREEDY)
            session.pause("a", 0.5)
            handle = llm.submit(ids(int(weight), 95), GREEDY)
            handle.result()
            num_cached = session.generate([5], GREEDY).num_cached_tokens
            misses = session.explain().misses
            assert misses and all((miss.cause, miss.by, miss.turn) == (cause, handle.id, 2) for miss in misses)
            assert sum(miss.num_tokens for miss in misses) == 72 - num_cached
            assert str(misses[0]).endswith(f"request {handle.id} took their blocks {words}")


def test_floors_of_tenants_in_bytes(llm: paged.LLM) -> None:
    block = llm._bytes_per_block
    most = NUM_BLOCKS - SEQUENCE_BLOCKS
    assert llm.tenants() == {"": paged.Tenant(0, 0, 0)}
    accepted = llm.set_tenant("a", floor=9 * block - 1)  # whole blocks
    assert (accepted.status, accepted.bytes) == ("accepted", 9 * block)
    clipped = llm.set_tenant("b", floor=9 * block)
    assert (clipped.status, clipped.bytes) == ("clipped", (most - 9) * block) and "max_model_len" in clipped.reason
    assert llm.set_tenant("c", floor=1).status == "rejected"
    with llm.session(tenant="a") as session, llm.session() as other:
        session.generate(ids(7, 36), GREEDY)
        for seed in range(8, 30):
            other.generate(ids(seed, 60), GREEDY)
            other.rewind(0)
        assert session.explain().resident_bytes == 9 * block
        with session.fork() as child:
            assert llm.tenants()["a"] == paged.Tenant(2, 9 * block, 9 * block), "shared blocks are charged once"
            assert session.explain().charged_bytes == child.explain().charged_bytes == 4.5 * block
    assert llm.tenants()["a"] == paged.Tenant(0, 9 * block, 0)
    assert llm.set_tenant("a", floor=0).status == llm.set_tenant("b", floor=0).status == "accepted"
    assert set(llm.tenants()) == {""}
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="floor takes"):
            llm.set_tenant("a", floor=wrong)  # type: ignore[arg-type]
