# SPDX-License-Identifier: Apache-2.0
"""`LLM`: a model and its engine inside this process."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from paged import _C
from paged.checks import check_priority, checked_token_ids, is_single, one_for_each, shown
from paged.config import EngineOptions, GenerationConfig, LoadFormat, Quantize
from paged.guide import GuideWorkers
from paged.handle import Handle, OnChunk
from paged.handle_group import HandleGroup
from paged.native_params import native_params
from paged.notifier import Notifiers
from paged.outputs import Completion
from paged.sampling import SamplingParams, of_each_answer
from paged.waiting import wait_all

if TYPE_CHECKING:
    from paged.grammar import GrammarCompiler
    from paged.metrics import Stats
    from paged.policy import Policy
    from paged.prefix import Prefix
    from paged.program.ir import DType, KvCacheDType
    from paged.receipts import Explanation, Receipt, Tenant
    from paged.scoring import Score
    from paged.session import Session
    from paged.text.chat import ChatTemplate
    from paged.text.tokenizer import Tokenizer
    from paged.tool_use import ToolUse
    from paged.trace import Trace

TokenIds = list[int]
Prompt = str | TokenIds
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

# Characters of a text for each byte of its tokens, at most: what normalising and merging may leave out.
_MAX_TEXT_STRETCH = 8


class LLM:
    """A model, its KV cache and the thread that steps it. Use it as a context manager, or call `close()`.

    Safe to use from any number of threads. No child processes, no signal handlers; generating never waits for the GIL.

    Args:
        model: a short name (`paged pull --list`), a `.gguf` file, a Hugging Face folder, or a Hub id "org/name".
        dtype: of activations: "float32", "bfloat16", "float16", or "auto": the checkpoint's own (bfloat16 for quantised
            GGUF files). On a CPU, quantised weights are multiplied by integers: 16 bits of an activation in float32, of
            others 8 where that rounds off no more than bfloat16 does. So "float32" is closest to the weights as they
            are, and slower.
        kv_cache_dtype: of the keys and values that are kept: "float32", "bfloat16", "float16", "int8", or "auto": that
            of the activations, the only one on a GPU. "int8" rounds to 8 bits, with a scale for each head's value of a
            token and for each 32 components of a key: at a head size of 64, 1.83 times the context of 16 bits in the
            same bytes. See docs/memory.md for what it costs.
        device: "cpu"; "cuda" or "hip", with ":<index>" for another than the first GPU, in a build with that backend; or
            "torch" / "torch:<device>" to run the same program with torch on any of its devices.
        num_threads: threads of the CPU backend; None: the physical cores this process may use. On a machine with
            several nodes of memory (NUMA) each keeps to one, as many to each, of those that the process's affinity
            allows (`taskset`, `os.sched_setaffinity`).
        kv_cache_bytes: size of the KV pool; None: what can be used, at most a quarter of the free memory and 4 GiB,
            or on a GPU `gpu_memory_utilization` of what is free when the weights are there.
        gpu_memory_utilization: share of the GPU's free memory for the KV pool, in (0, 1], if kv_cache_bytes is None.
        max_model_len: longest sequence, prompt and answer together; None: the model's own.
        max_num_sequences: sequences that run at once, and prompt tokens that one step scores (prompt_logprobs); None:
            64, on a GPU 256.
        max_num_batched_tokens: tokens of one step; longer prompts are computed in chunks. None: 512, on a GPU 8192.
        block_size: tokens of a KV block, a power of two up to 256; None: 16, on a GPU 64.
        host_cache: bytes of the host's memory (page-locked for a GPU) for copies of cached blocks: what leaves the KV
            pool comes back from there instead of being computed again. 0: none. Not with device="torch".
        disk_cache: bytes of a disk for copies of what the host has no room for, or without `host_cache` of what leaves
            the KV pool. Reserved at once, in a file that no other process can open and that ends with the engine, even
            if the process is killed; what is read from it is verified. 0: none. Not with device="torch".
        disk_cache_path: the folder of that file; None: $TMPDIR, or else /var/tmp. Not one that lies in memory (tmpfs).
        enable_prefix_caching: keep computed blocks and reuse them for prompts with the same beginning.
        batch_invariant: on a GPU, also matrix products give a row the same bits whatever the batch; everything else
            does so always, and the CPU backend altogether. The prefix cache then keeps blocks of prompts only: keys and
            values of generated tokens come from other kernels, so that a hit on them would show in the last bits.
        quantize: "int8" or "int4": float matrices of the checkpoint are rounded at load, 32 weights with a scale (and,
            in 4 bits, a minimum of their own: q8_0 and q4_1 of GGUF); in "int4" the embedding and the output head have
            8 bits. What is quantised already stays as it is. None: all as it is stored.
        quantize_cache: keep what `quantize` makes in a file beside the model, paged-int8.quantised or the like, and
            read it from there next time. It is verified; damaged, or of other weights, it is written anew. OSError if
            it cannot be.
        load_format: "auto", or "dummy" for random weights where only a config.json is there (benchmarks, planning).
        generation_config: "auto": requests that bring no SamplingParams sample as the model's generation_config says,
            see `default_sampling_params`; "none": as `SamplingParams()` says.
        seed: where requests without a seed of their own get theirs from.
        policy: whose cached blocks go first: "hazard" learns how long tools take; "lru" knows no sessions; "ttl" or
            "ttl:<seconds>" keeps each session's for a time after its turn (60 s), "priority" goes by their weight; or a
            `Policy` of your own. Without sessions all are the same.

    Raises:
        ValueError, TypeError: an option or a checkpoint that cannot be used, with what arrived and what is expected.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: DType | Literal["auto"] = "auto",
        kv_cache_dtype: KvCacheDType | Literal["auto"] = "auto",
        device: str = "cpu",
        num_threads: int | None = None,
        kv_cache_bytes: int | None = None,
        gpu_memory_utilization: float = 0.85,
        max_model_len: int | None = None,
        max_num_sequences: int | None = None,
        max_num_batched_tokens: int | None = None,
        block_size: int | None = None,
        host_cache: int = 0,
        disk_cache: int = 0,
        disk_cache_path: str | Path | None = None,
        enable_prefix_caching: bool = True,
        batch_invariant: bool = False,
        quantize: Quantize | None = None,
        quantize_cache: bool = False,
        load_format: LoadFormat = "auto",
        generation_config: GenerationConfig = "auto",
        seed: int = 0,
        policy: str | Policy = "hazard",
    ) -> None:
        from paged.assembly import assemble

        self._engine: _C.Engine | None = None
        options = EngineOptions(
            dtype=dtype, kv_cache_dtype=kv_cache_dtype, device=device, num_threads=num_threads,
            kv_cache_bytes=kv_cache_bytes, gpu_memory_utilization=gpu_memory_utilization, max_model_len=max_model_len,
            max_num_sequences=max_num_sequences,
            max_num_batched_tokens=max_num_batched_tokens, block_size=block_size, host_cache=host_cache,
            disk_cache=disk_cache, disk_cache_path=disk_cache_path,
            enable_prefix_caching=enable_prefix_caching, batch_invariant=batch_invariant,
            quantize=quantize, quantize_cache=quantize_cache, load_format=load_format,
            generation_config=generation_config, seed=seed, policy=policy,
        )  # fmt: skip
        parts = assemble(model, options)
        self._engine = parts.engine
        self._guides = GuideWorkers(parts.engine.guide_desk)
        self._notifiers = Notifiers()
        self._grammars_lock = threading.Lock()
        self._grammars: GrammarCompiler | None = None  # made when the first request needs it
        self._description = parts.description
        self._chat_template = parts.chat_template
        self._seed = seed
        self._submission = itertools.count()  # next() is atomic: requests come from any thread
        self._end_token_ids = parts.end_token_ids
        self._tokenizer = parts.tokenizer
        self._bytes_per_block = parts.bytes_per_block
        self._policy = parts.policy
        self._block_size = parts.block_size
        self._cache_identity = parts.cache_identity
        self.max_model_len = parts.max_model_len
        self.default_sampling_params = parts.default_sampling_params
        """What requests use that bring none of their own."""

    # -- generating ----------------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a string is a Sequence[str], and comes first
        self, prompts: str | TokenIds, sampling_params: SamplingParams | None = None, *, use_tqdm: bool = True,
        priority: int = 0,
    ) -> Completion: ...  # fmt: skip
    @overload
    def generate(
        self, prompts: Sequence[str] | Sequence[TokenIds],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *, use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
    ) -> list[Completion]: ...  # fmt: skip
    def generate(
        self,
        prompts: str | TokenIds | Sequence[str] | Sequence[TokenIds],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
    ) -> Completion | list[Completion]:
        """Generates for one prompt (a string or token ids) or for many, and waits for all.

        Args:
            prompts: one prompt gives one `Completion`; a sequence of prompts gives a list in the same order.
            sampling_params: for all prompts, or one for each; None: `default_sampling_params`.
            use_tqdm: a progress bar while several prompts run.
            priority: lower is more urgent; for all prompts, or one for each.

        Raises:
            ValueError: a prompt or parameter that can never run; nothing is generated then. A request that fails later
                fails alone: its `Completion` has finish_reason "error" and says why.
        """
        handles, is_single = self._submit_all(prompts, sampling_params, priority)
        wait_all(handles, use_tqdm)
        completions = [handle._completion() for handle in handles]
        return completions[0] if is_single else completions

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        on_chunk: OnChunk | None = None,
    ) -> Handle:
        """Submits one prompt and returns at once: the handle is waited for, iterated, awaited, cancelled, stopped.

        Args:
            priority: lower is more urgent.
            on_chunk: is called with each `Chunk` as it comes, on the thread of `Handle.add_done_callback`. If it
                raises, the request is cancelled.

        Raises:
            ValueError, TypeError: a prompt or parameter that can never run.
            EngineClosedError, InternalError: the engine is closed, or has failed with the cause that it names.
        """
        return self._submit(prompt, sampling_params, priority, on_chunk, Handle)

    def _submit(
        self, prompt: Prompt, sampling_params: SamplingParams | None, priority: int, on_chunk: OnChunk | None,
        make_handle: Callable[..., Handle], follows: int = 0,
    ) -> Handle:  # fmt: skip
        """follows: the id of a request, or 0. This one starts once that has a token: what they share is then cached."""
        check_priority(priority)
        if on_chunk is not None and not callable(on_chunk):
            raise TypeError(f"on_chunk takes a callable, got {shown(on_chunk)}")
        token_ids = self._token_ids(prompt)
        params = self._with_guide(self.default_sampling_params if sampling_params is None else sampling_params)
        engine = self._running_engine()
        handles: list[Handle] = []
        for index, of_answer in enumerate(of_each_answer(params)):
            native = self._native_params(of_answer)
            first = handles[0].id if handles else follows
            submit = functools.partial(engine.submit, token_ids, native, priority, follows=first)
            request = self._guides.submit(of_answer, submit)
            handles.append(make_handle(engine, request, len(token_ids), self._notifiers, on_chunk, index))
        return handles[0] if len(handles) == 1 else HandleGroup(handles)

    def _token_ids(self, prompt: Prompt) -> TokenIds:
        return self._encode(prompt) if isinstance(prompt, str) else checked_token_ids(prompt)

    def _encode(self, text: str) -> TokenIds:
        """Refuses what can never fit before it is cut into tokens, which takes seconds for some megabytes."""
        limit = _MAX_TEXT_STRETCH * self.tokenizer.longest_token * self.max_model_len
        if len(text) > limit:
            raise ValueError(
                f"the prompt has {len(text)} characters; max_model_len is {self.max_model_len} tokens, and a text of "
                f"more than {limit} characters is refused; shorten the prompt"
            )
        return self.tokenizer.encode(text, add_special_tokens=True)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0) -> Handle:
        """As `submit`: `for chunk in llm.stream(prompt)`. Dropping or closing the handle cancels the request."""
        return self.submit(prompt, sampling_params, priority=priority)

    def session(
        self, *, parent: Session | Prefix | None = None, tenant: str | None = None, weight: float | None = None
    ) -> Session:  # fmt: skip
        """An agent's conversation: it keeps its tokens, and tells the engine what it waits for.

        Args:
            parent: continue from there, as `Session.fork`.
            tenant: sessions of different tenants share no cached blocks. None: the parent's, or "".
            weight: of what it costs to compute this session's tokens again, against others; one of weight 2 also waits
                half as long for what it was served before it is urgent. Above 0. None: the parent's, or 1.

        Raises:
            ValueError: a weight that is not above 0, or a tenant that is not the parent's.
            RuntimeError: the parent is closed, or its turn runs.
        """
        from paged.session import open_session

        return open_session(self, parent, tenant, weight)

    def prefix(self, prompt: Prompt, *, tenant: str = "", weight: float = 1.0) -> Prefix:
        """A beginning that many sessions share (`session(parent=...)`), such as a system prompt with its tools: it is
        computed once, and charged once, split among those that use it.

        Args:
            prompt: token ids, or a string; `render_chat(..., add_generation_prompt=False)` for one of a chat.
            tenant, weight: as for `session`.
        """
        from paged.prefix import Prefix

        return Prefix(self.session(tenant=tenant, weight=weight), prompt)

    def set_tenant(self, tenant: str, *, floor: int) -> Receipt:
        """Gives a tenant a floor, at any time: as long as its sessions have no more than `floor` bytes of the KV cache,
        others take none of it.

        The receipt has the bytes of the floor: clipped or rejected, because all floors together leave what a sequence
        of `max_model_len` tokens may need (set a smaller `max_model_len`, or a larger `kv_cache_bytes`), or because 64
        tenants have one. 0: no floor.
        """
        from paged.session import receipt_of

        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
            raise ValueError(f"floor takes a number of bytes, got {shown(floor)}")
        num_blocks = min(-(-floor // self._bytes_per_block), 2**31 - 1)
        given = _C.set_tenant_floor(self._running_engine(), tenant, num_blocks)
        return receipt_of(given, self._bytes_per_block)

    def tenants(self) -> dict[str, Tenant]:
        """What each tenant has that has sessions or a floor; "" is of sessions without one."""
        from paged.receipts import Tenant

        size = self._bytes_per_block
        told = _C.tenants(self._running_engine())
        return {name: Tenant(sessions, floor * size, owned * size) for name, sessions, floor, owned in told}

    def load_session(self, path: str | Path, *, tenant: str | None = None, weight: float = 1.0) -> Session:
        """A session that `Session.save` wrote, maybe in another process: its tokens, and as many of its blocks as there
        is room for; the rest is computed when it is needed.

        Args:
            tenant, weight: as for `session`; None: the tenant that it was saved of.

        Raises:
            ValueError: the file is damaged, or of other weights, dtype, block size, layout or version.
            OSError: it cannot be read.
        """
        from paged.saved_session import load

        return load(self, path, tenant, weight)

    def explain(self, session: Session) -> Explanation:
        """As `Session.explain`."""
        return session.explain()

    def _submit_turn(
        self, session: int, token_ids: TokenIds, params: SamplingParams, priority: int, *, num_prompt_tokens: int,
        keeps_answer: bool, make_handle: Callable[..., Handle] = Handle,
    ) -> Handle:  # fmt: skip
        check_priority(priority)
        params = self._with_guide(params)
        engine = self._running_engine()
        submit = functools.partial(
            engine.submit, token_ids, self._native_params(params), priority, session=session, keeps_answer=keeps_answer
        )
        return make_handle(engine, self._guides.submit(params, submit), num_prompt_tokens, self._notifiers)

    def score(self, pairs: Sequence[tuple[Prompt, Prompt]], *, use_tqdm: bool = True, priority: int = 0) -> list[Score]:
        """How likely the model finds each continuation of each prompt, for evaluators.

        Args:
            pairs: (prompt, continuation) each, strings or token ids, of at most max_model_len tokens together. A string
                that continues a string is what the tokens of the whole text have more than those of the prompt.
                Beginnings that several pairs share are computed once.
            use_tqdm: a progress bar.
            priority: lower is more urgent.

        Raises:
            ValueError, TypeError: a pair that can never run; nothing is scored then.
            RequestError: a pair failed.
        """
        from paged.scoring import score

        return score(self, pairs, use_tqdm=use_tqdm, priority=priority)

    @overload
    def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[False] = False,
    ) -> Completion: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, *, tools: Tools | None = None,
        stream: Literal[True],
    ) -> Handle: ...  # fmt: skip
    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        stream: bool = False,
    ) -> Completion | Handle:
        """Answers a conversation, `[{"role": "user", "content": "..."}, ...]`, through the model's own template.

        Args:
            tools: functions that the model may call, `{"name", "description", "parameters": JSON schema}` each. The
                answer's `tool_calls` are then what it calls, and its `text` is what it says besides. Append
                `{"role": "assistant", "content": text, "tool_calls": [call.to_dict(), ...]}` and, for each call,
                `{"role": "tool", "name": call.name, "tool_call_id": call.id, "content": result}`, and chat again.
            stream: return the handle at once.

        Raises:
            ValueError: the model has no chat template, its template refuses the messages, or it does not know tools.
        """
        handle = self._submit_chat(messages, sampling_params, tools)
        if stream:
            return handle
        wait_all([handle], use_tqdm=False)
        return handle._completion()

    def _submit_chat(
        self, messages: Messages, sampling_params: SamplingParams | None, tools: Tools | None
    ) -> Handle:  # fmt: skip
        if tools is None:
            return self.submit(self.render_chat(messages), sampling_params)
        from paged.tool_use import ToolHandle

        use = self._tool_use(tools)
        use.check(sampling_params)
        token_ids = self.tokenizer.encode(use.render(messages), add_special_tokens=False)
        return self._submit(token_ids, sampling_params, 0, None, functools.partial(ToolHandle, use))

    def render_chat(
        self, messages: Messages, tools: Tools | None = None, *, add_generation_prompt: bool = True
    ) -> TokenIds:  # fmt: skip
        """The token ids of a conversation, up to where the assistant's answer begins, or without that beginning."""
        if tools is None:
            text = self._template().render(messages, add_generation_prompt=add_generation_prompt)
        else:
            text = self._tool_use(tools).render(messages, add_generation_prompt)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _tool_use(self, tools: Tools) -> ToolUse:
        from paged.tool_use import ToolUse

        return ToolUse(tools, self._template(), self.tokenizer)

    def _template(self) -> ChatTemplate:
        if self._chat_template is None:
            raise ValueError("this model has no chat template: use generate() with a prompt of your own")
        return self._chat_template

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError if the model came without one: it then takes and gives token ids."""
        if self._tokenizer is None:
            raise ValueError("this model has no tokenizer: pass token ids, and read `token_ids` instead of `text`")
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    # -- lifetime ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends what runs as "cancelled", joins the threads and gives all memory back. May be called again.

        Callbacks that are due are called first, so do not call it while holding what one of them waits for.
        """
        if self._engine is not None:
            self._engine.close()
            self._notifiers.close()

    @property
    def closed(self) -> bool:
        return self._engine is None or self._engine.closed

    def stats(self) -> Stats:
        """A snapshot of the engine: queue, batch, blocks, cache hits, rates, step times, preemptions."""
        from paged.metrics import snapshot

        return snapshot(self._running_engine().stats(), self._policy.description)

    def start_trace(self, max_steps: int = 100_000) -> None:
        """Records the last `max_steps` steps and as many requests that end, from now on; forgets what was recorded.
        100,000 take at most 12 MB; a step is not measurably slower for it.

        Raises:
            ValueError: max_steps is not in [1, 2**24].
        """
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or not 1 <= max_steps <= 2**24:
            raise ValueError(f"max_steps must be an integer in [1, {2**24}], got {shown(max_steps)}")
        self._running_engine().start_trace(max_steps)

    def stop_trace(self) -> Trace:
        """What was recorded since `start_trace`; `Trace.save` writes it for Perfetto and for `paged trace`."""
        from paged.trace import from_native

        return from_native(self._running_engine().stop_trace())

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({'closed, ' if self.closed else ''}{getattr(self, '_description', 'not loaded')})"

    # -- inside --------------------------------------------------------------------------------------------------

    def _running_engine(self) -> _C.Engine:
        if self._engine is None:
            raise _C.EngineClosedError("the engine was never made")
        return self._engine

    def _with_guide(self, params: SamplingParams) -> SamplingParams:
        """Structured output is a guide, which is made, and its grammar compiled, on a thread of the guides."""
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params takes SamplingParams, got {shown(params)}")
        if params.structured_outputs is None:
            return params
        with self._grammars_lock:
            if self._grammars is None:
                from paged.grammar import GrammarCompiler

                self._grammars = GrammarCompiler(self.tokenizer, self._running_engine().guide_desk.vocab_size)
        guide = functools.partial(self._grammars.guide, params.structured_outputs)
        return dataclasses.replace(params, structured_outputs=None, guide=guide)

    def _native_params(self, params: SamplingParams) -> _C.SamplingParams:
        return native_params(
            params, seed=self._request_seed(params.seed), end_token_ids=self._end_token_ids, tokenizer=self._tokenizer
        )

    def _request_seed(self, seed: int | None) -> int:
        if seed is not None:
            return seed % 2**64
        return (self._seed * 0x9E3779B97F4A7C15 + next(self._submission) * 0xD1B54A32D192ED03) % 2**64

    def _submit_all(self, prompts: Any, sampling_params: Any, priority: Any) -> tuple[list[Handle], bool]:
        """The arguments of `generate`; whether it is one prompt. If one is refused, those before it are cancelled."""
        if is_single(prompts):
            if not isinstance(sampling_params, SamplingParams | None) or not isinstance(priority, int):
                raise TypeError("one prompt takes one SamplingParams and one priority")
            return [self.submit(prompts, sampling_params, priority=priority)], True
        several = list(prompts)
        count = len(several)
        params = one_for_each("sampling_params", sampling_params, count)
        priorities = one_for_each("priority", priority, count)
        handles: list[Handle] = []
        for index in range(count):
            try:
                handles.append(self.submit(several[index], params[index], priority=priorities[index]))
            except (TypeError, ValueError) as error:
                for handle in handles:
                    handle.cancel()
                kind = TypeError if isinstance(error, TypeError) else ValueError  # theirs may take other arguments
                raise kind(f"prompt {index} of {count}: {error}") from error
        return handles, False
