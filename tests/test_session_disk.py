# SPDX-License-Identifier: Apache-2.0
"""The disk's tier: answers are those of an engine without one, whatever moves and whatever fails; no file is left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import paged
from backends import open_llm, until
from tiers import GREEDY, ids, tiered


def with_disk(folder: Path, device: str, path: Path, host_blocks: int, disk_blocks: int) -> paged.LLM:
    return tiered(folder, device, host_blocks, disk_blocks=disk_blocks, disk_cache_path=path)


def open_files(folder: Path) -> list[Path]:
    """This process's descriptors of files in the folder, whether these have names or not."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(str(folder)):
            found.append(descriptor)
    return found


def demote_whole(session: paged.Session) -> int:
    """To the disk; the bytes that are there when all is."""
    resident = session.explain().resident_bytes
    until(lambda: session.demote("disk").status == "accepted")
    until(lambda: session.explain().disk_bytes == resident)
    return resident


def others(llm: paged.LLM) -> None:
    """Need the whole pool, and the host's tier."""
    for seed in range(2, 9):
        llm.generate(ids(seed, 150), GREEDY)


@pytest.mark.parametrize("host_blocks", [0, 4])
def test_demoted_evicted_and_resumed(
    folder: Path, device: str, oracle: paged.LLM, tmp_path: Path, host_blocks: int
) -> None:  # fmt: skip
    with with_disk(folder, device, tmp_path, host_blocks, 200) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens = session.token_ids
        resident = demote_whole(session)
        assert resident == session.demote("disk").bytes == 5 * llm._bytes_per_block
        others(llm)
        assert session.explain().device_bytes < resident
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids
        assert answer.num_cached_tokens == 80, "all came back from the disk"
        assert session.explain().misses == ()
        stats = llm.stats()
        assert stats.num_disk_bytes_loaded > 0 and stats.num_disk_bytes_stored >= resident
        assert (stats.num_disk_blocks, stats.num_disk_errors) == (200, 0)


def test_prefetched_from_the_disk(folder: Path, device: str, oracle: paged.LLM, tmp_path: Path) -> None:
    with with_disk(folder, device, tmp_path, 0, 200) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens, resident = session.token_ids, demote_whole(session)
        others(llm)
        assert session.prefetch().bytes > 0
        until(lambda: session.prefetch().status == "accepted" and session.explain().device_bytes == resident)
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids
        assert answer.num_cached_tokens == 80


@pytest.mark.parametrize(("host_blocks", "disk_blocks"), [(0, 60), (8, 60), (8, 12)])
def test_three_tiers_that_thrash_never_change_an_answer(
    folder: Path, device: str, oracle: paged.LLM, tmp_path: Path, host_blocks: int, disk_blocks: int
) -> None:  # fmt: skip
    prompts = [ids(seed, 100) for seed in range(8)]  # 56 blocks
    expected = [completion.token_ids for completion in oracle.generate(prompts, GREEDY, use_tqdm=False)]
    with with_disk(folder, device, tmp_path, host_blocks, disk_blocks) as llm:
        num_cached = 0
        for turn in range(4):
            for prompt, tokens in zip(prompts, expected, strict=True):
                with llm.session() as session:
                    completion = session.generate(prompt, GREEDY)
                    assert completion.token_ids == tokens
                    num_cached += completion.num_cached_tokens
                    [session.prefetch, session.demote, lambda s=session: s.demote("disk"), list][turn]()
        stats = llm.stats()
        assert num_cached > 0 and stats.num_disk_bytes_stored > 0 and stats.num_disk_errors == 0
        if disk_blocks == 60:
            assert stats.num_disk_bytes_loaded > 0
        assert stats.num_disk_cached_blocks <= disk_blocks and stats.num_host_cached_blocks <= host_blocks


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_what_the_disk_does_not_give_back_is_computed(
    folder: Path, device: str, oracle: paged.LLM, tmp_path: Path, damage: str
) -> None:  # fmt: skip
    with with_disk(folder, device, tmp_path, 0, 200) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens, _ = session.token_ids, demote_whole(session)
        others(llm)
        (file,) = open_files(tmp_path)
        size = file.stat().st_size
        os.truncate(file, 0)
        if damage == "overwritten":
            os.truncate(file, size)
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids
        assert "unreadable" in {miss.cause for miss in session.explain().misses}
        assert "the disk" in str(session.explain().misses[0])
        assert llm.stats().num_disk_errors > 0
        others(llm)
        again = session.generate(ids(10, 4), GREEDY)
        tokens += ids(9, 4) + answer.token_ids + ids(10, 4)
        assert again.token_ids == oracle.generate(tokens, GREEDY).token_ids


def test_a_disk_that_is_full(folder: Path, device: str, oracle: paged.LLM, tmp_path: Path) -> None:
    """Also one that was promised and is not there."""
    with pytest.raises(ValueError, match=r"disk_cache: no room for .* disk_cache_path"):
        open_llm(folder, device, disk_cache=1 << 44, disk_cache_path=tmp_path)
    assert open_files(tmp_path) == [] and list(tmp_path.iterdir()) == []
    with with_disk(folder, device, tmp_path, 0, 200) as llm, llm.session() as session:
        session.generate(ids(1, 90), GREEDY)
        tokens = session.token_ids
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * llm._bytes_per_block, hard))
        try:
            session.demote("disk")
            until(lambda: "failed" in session.demote("disk").reason)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        receipt = session.demote("disk")
        assert receipt.status == "clipped" and "File too large" in receipt.reason
        assert receipt.bytes == session.explain().disk_bytes < session.explain().resident_bytes
        others(llm)
        answer = session.generate(ids(9, 4), GREEDY)
        assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids


def test_the_file_is_private_and_goes(folder: Path, device: str, tmp_path: Path) -> None:
    llm = with_disk(folder, device, tmp_path, 4, 200)
    assert list(tmp_path.iterdir()) == [], "it has no name"
    (file,) = open_files(tmp_path)
    status = file.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600 and status.st_nlink == 0
    assert status.st_size == 200 * llm._bytes_per_block
    with open(file, "rb") as inherited:
        with llm.session() as session:
            session.generate(ids(1, 90), GREEDY)
            session.demote("disk")
            llm.close()  # while blocks move
        assert os.fstat(inherited.fileno()).st_size == 0, "its bytes are given back, whoever has it open"
    assert open_files(tmp_path) == []


def test_a_killed_process_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    code = f"""
        import os, signal, paged
        llm = paged.LLM({str(folder)!r}, dtype="float32", disk_cache=1 << 20, disk_cache_path={str(tmp_path)!r})
        session = llm.session()
        session.generate([5] * 90, paged.SamplingParams(max_tokens=4))
        session.demote("disk")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_options(folder: Path, device: str, oracle: paged.LLM, tmp_path: Path) -> None:
    with oracle.session() as session:
        receipt = session.demote("disk")
        assert receipt.status == "rejected" and "disk_cache" in receipt.reason
    with pytest.raises(ValueError, match="holds 0 blocks"):
        open_llm(folder, device, disk_cache=1)
    with pytest.raises(ValueError, match="has no disk tier"):
        open_llm(folder, "torch", disk_cache=1 << 20)
    with pytest.raises(ValueError, match="enable_prefix_caching"):
        open_llm(folder, device, disk_cache=1 << 20, enable_prefix_caching=False)
    with pytest.raises(ValueError, match="must be a folder"):
        open_llm(folder, device, disk_cache=1 << 20, disk_cache_path=tmp_path / "none")
    with pytest.raises(ValueError, match="set disk_cache"):
        open_llm(folder, device, disk_cache_path=tmp_path)


def test_from_an_event_loop(folder: Path, device: str, oracle: paged.LLM, tmp_path: Path) -> None:
    async def work(llm: paged.LLM) -> None:
        engine = paged.AsyncLLM(llm)
        async with await engine.session() as session:
            first = await session.generate(ids(1, 90), GREEDY)
            saved = await session.save(tmp_path / "session.safetensors")
            assert saved.bytes == (await session.explain()).resident_bytes
            assert (await session.demote()).status in ("accepted", "clipped")
            assert (await session.demote("disk")).status in ("accepted", "clipped")
            assert (await session.prefetch()).status in ("accepted", "clipped")
            tokens = ids(1, 90) + first.token_ids
            async with await engine.load_session(tmp_path / "session.safetensors") as loaded:
                assert await loaded.token_ids() == await session.token_ids() == tokens
                answer = await loaded.generate(ids(9, 4), GREEDY)
            assert answer.token_ids == oracle.generate(tokens + ids(9, 4), GREEDY).token_ids

    (tmp_path / "disk").mkdir()
    with with_disk(folder, device, tmp_path / "disk", 20, 40) as llm:
        asyncio.run(work(llm))
