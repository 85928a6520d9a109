# SPDX-License-Identifier: Apache-2.0
"""Types of the C++ core. What lies here may change between versions: use the `paged` package."""

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from paged.outputs import FinishReason

from . import ops as ops

Int32Array = npt.NDArray[np.int32]
ScoreArrays = tuple[Int32Array, npt.NDArray[np.float32], Int32Array]
"""ids, values, ranks: [tokens, 1 + logprobs] each, the token's own first."""

class InternalError(RuntimeError):
    """A bug in paged. The engine that meets one fails and must be rebuilt."""

MatrixSource = tuple[npt.NDArray[np.uint8], str, int, int, Int32Array | None]

class DeviceError(RuntimeError):
    """What the GPU's runtime reported: out of memory, a failed launch, no driver."""

class EngineClosedError(RuntimeError):
    """The engine was closed, or is used in a process forked from the one that made it."""

class ThreadPool:
    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...

class Value:
    def __init__(self, *, offset: int, rows: str, cols: int, row_stride: int, dtype: str) -> None: ...

class Program:
    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str,
        arena_bytes: int,
        max_tokens: int,
        max_logits_rows: int,
        vocab_size: int,
        max_positions: int,
    ) -> None: ...
    def add_matrix(
        self,
        data: npt.NDArray[np.uint8],
        *,
        type: str,
        rows: int,
        cols: int,
        row_order: Int32Array | None,
        threads: ThreadPool,
    ) -> int: ...
    def add_stacked_matrix(
        self, *, sources: Sequence[MatrixSource], dtype: str, gpu: int, threads: ThreadPool
    ) -> int: ...
    def add_vector(self, values: npt.NDArray[np.float32]) -> int: ...
    def add_op(
        self,
        kind: str,
        *,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        matrices: Sequence[int],
        vector: int,
        head_norms: int,
        attributes: dict[str, float | int | bool | str],
    ) -> None: ...
    @property
    def matrix_bytes(self) -> list[int]: ...
    @property
    def weight_bytes(self) -> int: ...

class ProgramExecutor:
    def __init__(
        self, *, program: Program, max_seq_len: int, num_blocks: int, block_size: int, threads: ThreadPool
    ) -> None: ...
    def run(
        self,
        *,
        token_ids: Int32Array,
        positions: Int32Array,
        slot_mapping: Int32Array,
        query_start: Int32Array,
        seq_lens: Int32Array,
        block_tables: Int32Array,
        logits_rows: Int32Array,
    ) -> npt.NDArray[np.float32]: ...
    def set_profiling(self, enabled: bool) -> None: ...
    @property
    def op_seconds(self) -> list[float]: ...
    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

class GpuExecutor:
    def __init__(
        self,
        *,
        program: Program,
        max_seq_len: int,
        num_blocks: int,
        block_size: int,
        max_num_sequences: int,
        device: int,
        batch_invariant: bool,
        blas_folders: Sequence[str],
    ) -> None: ...
    def run(
        self,
        *,
        token_ids: Int32Array,
        positions: Int32Array,
        slot_mapping: Int32Array,
        query_start: Int32Array,
        seq_lens: Int32Array,
        block_tables: Int32Array,
        logits_rows: Int32Array,
    ) -> npt.NDArray[np.float32]: ...
    def set_profiling(self, enabled: bool) -> None: ...
    @property
    def op_seconds(self) -> list[float]: ...
    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def blas_problem(self) -> str: ...

def gpu_runtime() -> str: ...
def gpu_devices() -> tuple[int, str]: ...
def gpu_properties(device: int) -> tuple[str, int, int, int]: ...
def gpu_free_bytes(device: int) -> int: ...

class PythonExecutor(Protocol):
    """What may stand in for a ProgramExecutor: it is called on the engine thread, with the GIL."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def run(self) -> Callable[..., npt.NDArray[np.float32]]: ...
    @property
    def copy_blocks(self) -> Callable[[Int32Array, Int32Array], None]: ...

class SamplingParams:
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Sequence[tuple[int, float]]
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[Sequence[int]]
    num_logprobs: int
    num_prompt_logprobs: int
    first_prompt_logprob: int
    logprobs_mode: str
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: Sequence[int]
    stop: Sequence[bytes]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    def __init__(self) -> None: ...

class NewsQueue:
    def __init__(self) -> None: ...
    def wait(self) -> list[int]: ...
    def close(self) -> None: ...

class Request:
    @property
    def id(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def timings(self) -> tuple[float, float, float]: ...
    @property
    def token_seconds(self) -> npt.NDArray[np.float32]: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def wait_finished(self, timeout: float | None = None) -> bool: ...
    def ready(self, *, until_finished: bool) -> bool: ...
    def notify(self, queue: NewsQueue, *, until_finished: bool) -> None: ...
    def take(self) -> tuple[str, list[int], FinishReason | None, ScoreArrays | None]: ...
    def answer(self) -> tuple[str, list[int], FinishReason | None, ScoreArrays | None]: ...
    def prompt_scores(self) -> tuple[int, ScoreArrays] | None: ...

class GuideQuestion:
    @property
    def key(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def ended(self) -> bool: ...
    @property
    def logits(self) -> npt.NDArray[np.float32] | None: ...

class GuideDesk:
    @property
    def vocab_size(self) -> int: ...
    @property
    def read_end(self) -> int: ...
    def next(self) -> GuideQuestion | None: ...
    def sample(self, question: GuideQuestion, logits: npt.NDArray[np.float32]) -> int: ...
    def answer_mask(self, question: GuideQuestion, mask: npt.NDArray[np.uint32]) -> None: ...
    def answer_anything(self, question: GuideQuestion) -> None: ...
    def answer_token(self, question: GuideQuestion, token: int) -> None: ...
    def answer_stop(self, question: GuideQuestion) -> None: ...
    def answer_error(self, question: GuideQuestion, text: str) -> None: ...

class TokenTable:
    def __init__(
        self,
        bytes: bytes,
        offsets: Sequence[int] | npt.NDArray[np.integer],
        is_special: Sequence[bool] | npt.NDArray[np.bool_],
    ) -> None: ...

class SchedulerConfig:
    num_blocks: int
    block_size: int
    max_num_sequences: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool
    cache_generated_tokens: bool
    def __init__(self) -> None: ...

class EngineStats:
    @property
    def num_steps(self) -> int: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    @property
    def num_generated_tokens(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_cached_blocks(self) -> int: ...
    @property
    def num_failed(self) -> int: ...
    @property
    def num_cancelled(self) -> int: ...
    @property
    def last_step_seconds(self) -> float: ...
    @property
    def generated_tokens_per_second(self) -> float: ...
    @property
    def prefill_tokens_per_second(self) -> float: ...
    @property
    def step_counts(self) -> list[int]: ...
    @property
    def step_seconds(self) -> float: ...
    step_bounds: Final[list[float]]
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_free_blocks(self) -> int: ...
    @property
    def num_finished(self) -> int: ...

class Trace:
    @property
    def steps(self) -> list[tuple[float, float, int, int, int, int, int]]: ...
    @property
    def requests(self) -> list[tuple[int, float, float, float, float, int, int, int, FinishReason]]: ...
    @property
    def num_dropped_steps(self) -> int: ...
    @property
    def num_dropped_requests(self) -> int: ...

class Engine:
    def __init__(
        self,
        *,
        config: SchedulerConfig,
        executor: ProgramExecutor | GpuExecutor | PythonExecutor,
        threads: ThreadPool,
        token_table: TokenTable | None,
    ) -> None: ...
    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        priority: int = 0,
        cache_salt: str = "",
        *,
        guide: tuple[Literal["mask", "token"], int] | None = None,
        follows: int = 0,
    ) -> Request: ...
    @property
    def guide_desk(self) -> GuideDesk: ...
    def cancel(self, id: int) -> None: ...
    def stop(self, id: int) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    def start_trace(self, capacity: int) -> None: ...
    def stop_trace(self) -> Trace: ...

class ReplayConfig:
    num_blocks: int
    block_size: int
    max_num_sequences: int
    max_num_batched_tokens: int
    max_model_len: int
    max_wait_steps: int
    num_slots: int
    stagger: float
    uses_sessions: bool
    tells_tools: bool
    def __init__(self) -> None: ...
    def set_device(
        self,
        *,
        base: float,
        per_token: float,
        per_token_pair: float,
        decode_base: float,
        per_decoded_context_token: float,
    ) -> None: ...

class ReplayResult:
    @property
    def job_seconds(self) -> npt.NDArray[np.float64]: ...
    @property
    def least_seconds(self) -> npt.NDArray[np.float64]: ...
    @property
    def resume_seconds(self) -> npt.NDArray[np.float64]: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    @property
    def num_new_tokens(self) -> int: ...
    @property
    def num_evicted_tokens(self) -> int: ...
    @property
    def num_expired_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def busy_seconds(self) -> float: ...
    @property
    def mean_live_tokens(self) -> float: ...

def replay(
    *,
    agents: npt.NDArray[np.int64],
    turns: npt.NDArray[np.float64],
    config: ReplayConfig,
    policy: str,
    ttl_seconds: float = 2.0,
) -> ReplayResult: ...
