# SPDX-License-Identifier: Apache-2.0
"""Sessions in files go on as if they had never left; files of anything else, or damaged ones, are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import paged
from backends import DEVICES, open_llm
from tiny_models import tiny_model

GREEDY = paged.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def llm(folder: Path, device: str) -> Iterator[paged.LLM]:
    with open_llm(folder, device, block_size=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def saved(llm: paged.LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 70 tokens of the tenant "a"."""
    path = tmp_path_factory.mktemp("saved") / "session.safetensors"
    with llm.session(tenant="a") as session:
        session.generate(ids(1, 64), GREEDY)
        assert session.save(path).bytes <= session.explain().resident_bytes
    return path


def ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def test_a_session_goes_on_in_another_engine(llm: paged.LLM, saved: Path, folder: Path, device: str) -> None:
    with open_llm(folder, device, block_size=16) as other, other.load_session(saved) as session:
        whole = session.token_ids
        assert whole[:64] == ids(1, 64) and len(whole) == 70
        told = session.explain()
        num_blocks = told.resident_bytes // other._bytes_per_block
        assert num_blocks == (0 if device == "torch" else 4), "the last token's keys and values were never computed"
        answer = session.generate(ids(2, 5), GREEDY)
        assert answer.num_cached_tokens == 16 * num_blocks
        assert answer.token_ids == other.generate(whole + ids(2, 5), GREEDY).token_ids
        with llm.session() as fresh:
            assert fresh.generate(whole + ids(2, 5), GREEDY).token_ids == answer.token_ids
        assert session.explain().misses == ()


def test_what_is_there_is_shared_and_tenants_are_not(llm: paged.LLM, saved: Path) -> None:
    with llm.load_session(saved) as one, llm.load_session(saved) as two, llm.load_session(saved, tenant="b") as three:
        assert one.explain().charged_bytes * 2 == one.explain().resident_bytes
        assert two.explain().resident_bytes == three.explain().charged_bytes
        answers = [session.generate([9, 8], GREEDY).token_ids for session in (one, two, three)]
        assert answers[0] == answers[1] == answers[2]


def test_a_pool_that_is_too_small_takes_what_fits(saved: Path, folder: Path, device: str) -> None:
    with open_llm(folder, device, block_size=16) as llm:
        block = llm._bytes_per_block
    options = {"block_size": 16, "kv_cache_bytes": 8 * block, "max_model_len": 100}
    with open_llm(folder, device, **options) as small:
        sessions = [small.load_session(saved, tenant=name) for name in "abc"]
        assert sum(session.explain().resident_bytes for session in sessions) <= 8 * block
        answers = [session.generate([7], GREEDY).token_ids for session in sessions]
        assert answers[0] == answers[1] == answers[2]


def test_a_file_of_the_format_that_others_read(saved: Path, device: str) -> None:
    reader = pytest.importorskip("safetensors.numpy")
    tensors = reader.load_file(saved)
    assert tensors["token_ids"].tolist()[:64] == ids(1, 64)
    assert tensors["blocks"].shape[0] == tensors["checksums"].shape[0] - 1 == (0 if device == "torch" else 4)


def rewritten(saved: Path, path: Path, change: dict[str, str]) -> Path:
    data = saved.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= change
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(size) + data[8 + size :])
    return path


@pytest.mark.parametrize("key", ["format", "version", "weights", "dtype", "batch_invariant", "block_size"])
def test_other_identities_are_refused(llm: paged.LLM, saved: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="'other'"):
        llm.load_session(rewritten(saved, tmp_path / "s", {key: "other"}))


def test_another_layout_is_refused(llm: paged.LLM, saved: Path, tmp_path: Path, device: str) -> None:
    path = rewritten(saved, tmp_path / "s", {"layout": "another"})
    if device == "torch":
        llm.load_session(path).close()  # it has tokens only
    else:
        with pytest.raises(ValueError, match="its layout is 'another', this engine's is"):
            llm.load_session(path)


def test_other_weights_are_refused(saved: Path, tmp_path: Path, device: str) -> None:
    folder = tiny_model("llama", seed=1).save(tmp_path)
    with open_llm(folder, device, block_size=16) as llm, pytest.raises(ValueError, match="its weights is"):
        llm.load_session(saved)


def test_damaged_files_are_refused(llm: paged.LLM, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    # Without blocks nobody reads how they lie.
    has_blocks = json.loads(data[8:start])["blocks"]["shape"][0] > 0
    unread = range(0 if has_blocks else data.index(b'"block_bytes"'), 0 if has_blocks else data.index(b'"tenant"'))
    path = tmp_path / "damaged"
    rng = random.Random(3)
    for _ in range(60):
        if rng.random() < 0.3:
            damaged = data[: rng.randrange(len(data))]
        else:
            at = rng.choice([i for i in range(600) if i not in unread])
            at = at if rng.random() < 0.5 else rng.randrange(start, len(data))
            damaged = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            llm.load_session(path).close()
    with pytest.raises(OSError):
        llm.load_session(tmp_path / "missing")


def test_what_is_saved_must_have_settled(llm: paged.LLM, tmp_path: Path) -> None:
    with llm.session() as session:
        session.append(ids(5, 20))
        assert session.save(tmp_path / "s").status == "accepted"
        assert len(llm.load_session(tmp_path / "s").token_ids) == 20
        with pytest.raises(OSError):
            session.save(tmp_path / "no" / "folder")
        assert [file.name for file in tmp_path.iterdir()] == ["s"]
