# SPDX-License-Identifier: Apache-2.0
"""A short storm on the engine; bench/soak.py runs the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason="some of its requests have grammars: pip install 'paged[structured]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import soak


def test_a_storm_loses_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "ROUND", 200)
    result = soak.soak(800, seed=3, num_kinds=200)
    assert result["problems"] == []
    assert result["requests"] == 800 and result["preemptions"] > 0 and result["cached_tokens"] > 0
    assert {"length", "stop", "cancelled"} <= result["finish_reasons"].keys()
    assert result["styles"].keys() == {style.__name__ for style in soak.STYLES}


def test_a_wrong_answer_a_lost_request_and_a_leak_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is no good if it agrees with anything."""
    kinds = soak.make_catalogue

    def with_one_wrong(*arguments: object) -> list[soak.Kind]:
        catalogue = kinds(*arguments)  # type: ignore[arg-type]
        longest = max(catalogue, key=lambda kind: len(kind.answers[0].token_ids))
        longest.answers[0].token_ids[-1] ^= 1
        return [longest]

    monkeypatch.setattr(soak, "make_catalogue", with_one_wrong)
    assert "but alone" in soak.soak(20, seed=3, num_kinds=20)["problems"][0]
    monkeypatch.undo()
    account = soak.Account(num_submitted=2)
    account.reasons["length"] = 1

    class Quiet:
        def stats(self) -> object:
            return type("Stats", (), dict.fromkeys(
                ("num_failed", "num_cancelled", "num_running", "num_waiting", "num_used_blocks"), 0
            ) | {"num_finished": 2, "num_free_blocks": soak.NUM_BLOCKS - 1})()  # fmt: skip

    soak.check_rest(Quiet(), account)  # type: ignore[arg-type]
    assert [problem.split(":")[1].strip() for problem in account.problems] == [
        "not all finished",
        "not no block is in use",
    ]
