# SPDX-License-Identifier: Apache-2.0
"""A target for fuzzing every callable of paged._C: a valid call with some arguments replaced must end in a result or a
named exception, and never leave its arrays.

test_fuzz_bindings.py runs it in a process of its own, which a crash ends. For a coverage-guided run of any length
(pip install atheris), or under AddressSanitizer:

    python tests/fuzz_bindings.py --atheris [-max_total_time=600]
    python tests/fuzz_bindings.py --examples 20000 [--log FILE]    # the last call stands in FILE
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from binding_calls import NEEDS_GPU, NOT_CONSTRUCTIBLE, Model, all_calls, batch, executor, ints
from fuzz_requests import ANYTHING, HostileError
from paged import _C

NAMED = (
    TypeError, ValueError, BufferError, MemoryError, HostileError, _C.InternalError, _C.EngineClosedError,
    _C.DeviceError,
)  # fmt: skip

DTYPES = ("f4", "f8", "f2", "i4", "i8", "i2", "u1", "u4", ">i4", "?", "c8", "O", "S2")
INDICES = st.sampled_from([-(2**31), -2, -1, 0, 1, 3, 7, 31, 32, 33, 63, 64, 1 << 20, 2**31 - 1])


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Any shape, type and layout."""
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 17, 24, 32]), max_size=3)))
    result = np.zeros(shape, draw(st.sampled_from(DTYPES)))
    return rearranged(draw, result)


def rearranged(draw: st.DrawFn, array: Any) -> Any:
    layout = draw(
        st.sampled_from(["as it is", "transposed", "reversed", "every second", "read-only", "repeated", "longer"])
    )
    if layout == "transposed":
        return array.T
    if layout == "reversed":
        return array[::-1] if array.ndim else array
    if layout == "every second":
        return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    if layout == "repeated":
        return np.lib.stride_tricks.as_strided(array, array.shape, (0,) * array.ndim)
    if layout == "longer":
        return np.concatenate([array, array]) if array.ndim else array
    result = array.copy()
    result.flags.writeable = layout != "read-only"
    return result


@st.composite
def mutated(draw: st.DrawFn, given_value: Any) -> Any:
    """What stands near it, or anything."""
    if isinstance(given_value, np.ndarray):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            return rearranged(draw, given_value)
        if kind == 1 and given_value.size:
            result = given_value.copy().reshape(-1)
            result[draw(st.integers(0, result.size - 1))] = draw(INDICES) % (256 if result.itemsize == 1 else 2**31)
            return result.reshape(given_value.shape)
        if kind == 2:
            return given_value.astype(draw(st.sampled_from(DTYPES)))
        if kind == 3:
            return given_value[: draw(st.integers(0, max(0, len(given_value) - 1)))]
        return draw(arrays() | ANYTHING)
    if isinstance(given_value, bool | int | float):
        return draw(INDICES | st.integers() | st.floats() | ANYTHING)
    if isinstance(given_value, str):
        return draw(st.sampled_from(["float16", "bfloat16", "q8_0", "q4_k", "q6_k", "logits", "tokens"]) | ANYTHING)
    if isinstance(given_value, list):
        return draw(st.sampled_from([[], given_value * 2, given_value[::-1], [None], given_value[:1] * 3]) | ANYTHING)
    if isinstance(given_value, dict):
        changed = dict(given_value)
        changed[draw(st.sampled_from([*changed, "head_dim", "width", "layer", "window", "num_heads", "x"]))] = draw(
            INDICES | ANYTHING
        )
        return changed
    return draw(ANYTHING | arrays())


def make_attempt(max_examples: int, log: int | None) -> Callable[[], None]:
    makers = all_calls()

    @settings(max_examples=max_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(makers)))
        (function, arguments), model = makers[name]()
        arguments = {key: held() if isinstance(held, types.MethodType) else held for key, held in arguments.items()}
        count = data.draw(st.integers(0, min(2, len(arguments))))
        for key in data.draw(st.permutations(sorted(arguments)))[:count]:
            arguments[key] = data.draw(mutated(arguments[key]))
        if log is not None:
            os.ftruncate(log, 0)
            os.pwrite(log, ascii((name, {key: safe_repr(held) for key, held in arguments.items()})).encode(), 0)
        try:
            function(**arguments)
        except NAMED:
            assert count or name in (*NOT_CONSTRUCTIBLE, *NEEDS_GPU), f"the valid call of {name} is refused"
        if model is not None:
            model.close()

    return attempt


def safe_repr(held: object) -> str:
    try:
        return repr(held)[:500]
    except Exception:
        return f"<{type(held).__name__}>"


def alive() -> None:
    """Whatever was called, a new engine works, and the model still computes what it did."""
    model = Model()
    assert model.request.wait_finished(60) and model.request.answer()[2] == "length"
    model.close()
    fresh = batch() | {"positions": ints(0, 0, 1), "slot_mapping": ints(0, 16, 17), "seq_lens": ints(1, 2)}
    assert np.isfinite(executor().run(**fresh)).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log")
    given_arguments, rest = parser.parse_known_args()
    log = os.open(given_arguments.log, os.O_CREAT | os.O_WRONLY) if given_arguments.log else None
    attempt: Any = seed(given_arguments.seed)(make_attempt(given_arguments.examples, log))
    if given_arguments.atheris:
        import atheris

        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *rest], attempt.hypothesis.fuzz_one_input)
        atheris.Fuzz()
    attempt()
    alive()


if __name__ == "__main__":
    main()
