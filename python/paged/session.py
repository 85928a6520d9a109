# SPDX-License-Identifier: Apache-2.0
"""`Session`: an agent's conversation, which tells the engine what it waits for."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from paged import _C
from paged.handle import Handle
from paged.receipts import Explanation, Miss, Receipt
from paged.sampling import SamplingParams
from paged.session_chat import Conversation, Message, begin, go_on

if TYPE_CHECKING:
    from paged.llm import LLM
    from paged.outputs import Completion
    from paged.prefix import Prefix

Prompt = str | Sequence[int]
Expectation = float | Sequence[tuple[float, float]]
_APPEND_ONLY = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


class Session:
    """A conversation that the engine keeps: its token ids, and the blocks of the KV cache that hold them while nobody
    needs them more. Made by `LLM.session`. One turn at a time; from any thread. Close it, leave its `with` block or
    drop it: what only it used is then worth nothing.

    What is announced here (`pause`, `progress`, `eta`, `pin`) never changes an answer, only what is computed again, and
    holds up nobody: a session that waits owns nothing that cannot be taken from it.
    """

    def __init__(self, llm: LLM, session_id: int, tenant: str) -> None:
        self._llm = llm
        self._engine = llm._running_engine()
        self._id = session_id
        self._tenant = tenant
        self._turn: Handle | None = None
        self._appends = False  # the turn: else it generates
        self._chat: Conversation | None = None

    # -- turns ---------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Completion:
        """Appends the prompt and the answer. As `LLM.generate` of all tokens so far and the prompt.

        Args:
            prompt: token ids, or a string; one that does not begin the session is tokenized without special tokens.

        Raises:
            ValueError, TypeError: it can never run, or asks for what turns do not have (n, prompt_logprobs).
            RuntimeError: the turn before has not ended.
            RequestError: it failed; the session keeps the prompt and what had come.
        """
        return self.stream(prompt, sampling_params, priority=priority).result()

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0) -> Handle:
        """As `generate`, and returns at once. A turn that is cancelled or stopped keeps what had come."""
        params = self._llm.default_sampling_params if sampling_params is None else sampling_params
        self._chat = None
        return self._submit(prompt, params, priority, keeps_answer=True)

    @overload
    def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, *,
        tools: Sequence[Message] | None = None, stream: Literal[False] = False,
    ) -> Completion: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, *,
        tools: Sequence[Message] | None = None, stream: Literal[True],
    ) -> Handle: ...  # fmt: skip
    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
    ) -> Completion | Handle:
        """Appends messages through the model's template, and the answer. As `LLM.chat` of all messages so far, but that
        the tokens of earlier turns stay as they are: an answer is what the model wrote.

        Args:
            messages: the new ones: the first chat's all, later what came since the last answer, such as the results of
                tools. A session that has other tokens (a prefix, what `rewind` left) takes the whole conversation,
                which must begin with them.
            tools: as for `LLM.chat`; None: those of the chat so far.
            stream: return the handle at once.

        Raises:
            ValueError: as for `LLM.chat`; the template writes earlier messages in another way than before (some leave
                out what a model thought): the error says how to go on; or the messages do not begin with the session's
                tokens.
            RuntimeError, RequestError: as for `generate`.
        """
        handle = self._submit_chat(messages, sampling_params, tools)
        return handle if stream else handle.result()

    @property
    def messages(self) -> list[Message]:
        """The conversation that `chat` has had, its last answer included; empty if something else was appended, or the
        session went back, since."""
        self._settle()
        return [] if self._chat is None else self._chat.all_messages()

    def append(self, prompt: Prompt) -> Handle:
        """Appends tokens and computes them, while the tool that the session waits for goes on. The next turn may come
        at once: it waits for this one. The handle's answer is of no interest."""
        self._chat = None
        return self._submit(prompt, _APPEND_ONLY, 0, keeps_answer=False)

    def edit(self, span: tuple[int, int], prompt: Prompt) -> Receipt:
        """Replaces the tokens [start, end); what stands behind them is computed again, so it is exact."""
        start, end = span
        tokens = self.token_ids
        if not 0 <= start <= end <= len(tokens):
            raise ValueError(f"a span is (start, end) within the session's {len(tokens)} tokens, got {span!r}")
        rest = [*self._ids(prompt, begins=start == 0), *tokens[end:]]
        receipt = self._rewind(start, len(tokens) - end)
        if receipt.status == "accepted" and rest:
            self.append(rest)
        return receipt

    def fork(self) -> Session:
        """Another session that continues from here. It shares what is there, and both pay for it.

        Raises:
            RuntimeError: the session is closed, or its turn runs.
        """
        return self._fork(None)

    def _fork(self, weight: float | None) -> Session:
        self._settle()
        child = _C.session_fork(self._engine, self._id, weight)
        if child == 0:
            raise RuntimeError("a session is forked between two turns, and before it is closed")
        session = Session(self._llm, child, self._tenant)
        session._chat = self._chat
        return session

    # -- signals and commands ------------------------------------------------------------------------------------

    def pause(self, tool: str = "", expect: Expectation | None = None) -> Receipt:
        """It now waits for a tool: how long such tools take is learnt by their names. Deferred while a turn runs: it
        begins when that has ended.

        Args:
            expect: seconds until it is back, or quantiles of them, ((share, seconds), ...) ascending: so many of such
                tools are back by then. How far such guesses come true is learnt too.
        """
        return self._receipt(_C.session_pause(self._engine, self._id, tool, _quantiles(expect)))

    def progress(self, share: float) -> Receipt:
        """The tool has done this share, in (0, 1], of its work."""
        return self._receipt(_C.session_progress(self._engine, self._id, share))

    def eta(self, seconds: float) -> Receipt:
        """The tool is back in so many seconds."""
        return self._receipt(_C.session_eta(self._engine, self._id, seconds))

    def rewind(self, num_tokens: int) -> Receipt:
        """Goes back to its first `num_tokens` tokens."""
        return self._rewind(num_tokens, 0)

    def _rewind(self, num_tokens: int, num_again: int) -> Receipt:
        self._settle()
        receipt = self._receipt(_C.session_rewind(self._engine, self._id, num_tokens, num_again))
        if receipt.status == "accepted":
            self._chat = None
        return receipt

    def pin(self, ttl: float, budget: int | None = None) -> Receipt:
        """The first `budget` bytes of its blocks go last for `ttl` seconds, of those that it will have too; None: as
        many as it has. A lease, not a lock: who runs may still need them. It takes the place of the lease before.

        The receipt has the bytes and the end of the lease: clipped, because all leases together leave what one step may
        need, or rejected if nothing can be leased.
        """
        if not 0 < ttl < math.inf:
            raise ValueError(f"ttl takes a number of seconds above 0, got {ttl!r}")
        num_blocks = None if budget is None else min(budget // self._llm._bytes_per_block, 2**31 - 1)
        return self._receipt(_C.session_pin(self._engine, self._id, ttl, num_blocks))

    def demote(self, tier: Literal["host", "disk"] = "host") -> Receipt:
        """Its blocks are copied to the host's memory (`LLM(host_cache=...)`) or the disk (`LLM(disk_cache=...)`), and
        what they have above that is then what others take first. The next turn, or `prefetch`, brings them back.

        The receipt has the bytes that are there or on their way: clipped to what transfers may hold at a time (the rest
        follows) or if the disk has failed, or rejected if there is no such tier.
        """
        if tier not in ("host", "disk"):
            raise ValueError(f"tier takes 'host' or 'disk', got {tier!r}")
        self._settle()
        return self._receipt(_C.session_demote(self._engine, self._id, tier))

    def prefetch(self) -> Receipt:
        """What the host and the disk have of it begins to come back to the device, into blocks that are held for
        nobody; until its next turn they may be taken again. The receipt has the bytes on their way: clipped or rejected
        where there is no room for more. `close`, `rewind`, `demote`, `pause` and signals that it is back later than was
        believed stop what has not come yet."""
        self._settle()
        return self._receipt(_C.session_prefetch(self._engine, self._id))

    def save(self, path: str | Path) -> Receipt:
        """Writes a .safetensors file for `LLM.load_session`: its tokens, and the blocks of the KV cache that are there.
        The receipt has their bytes; the engine goes on meanwhile.

        Raises:
            RuntimeError: its turn has not ended.
            OSError: it cannot be written; a file that was there stays as it was.
        """
        from paged.saved_session import save

        return Receipt("accepted", save(self, path), None, "")

    def close(self) -> Receipt:
        """Gives up what only it used; a turn that runs is cancelled. Again, it is rejected, and nothing happens."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn._wait_finished()
        return self._receipt(_C.session_close(self._engine, self._id))

    # -- about it ------------------------------------------------------------------------------------------------

    @property
    def token_ids(self) -> list[int]:
        """All tokens, as of its last turn that has ended."""
        self._settle()
        return _C.session_tokens(self._engine, self._id)

    def explain(self) -> Explanation:
        """Where its tokens live, when it is expected back, and the cause of every miss.

        Raises:
            ValueError: it is closed.
        """
        told = _C.session_report(self._engine, self._id)
        size = self._llm._bytes_per_block
        return Explanation(
            state=told["state"],
            tool=told["tool"],
            since=told["since"],
            expected_in=told["expected_in"],
            is_held=told["is_held"],
            lease_left=told["lease_left"],
            device_bytes=told["num_device_blocks"] * size,
            host_bytes=told["num_host_blocks"] * size,
            disk_bytes=told["num_disk_blocks"] * size,
            leased_bytes=told["num_leased_blocks"] * size,
            resident_bytes=told["num_resident_blocks"] * size,
            charged_bytes=told["num_charged_blocks"] * size,
            num_turns=told["num_turns"],
            num_reused_tokens=told["num_reused_tokens"],
            num_computed_tokens=told["num_computed_tokens"],
            misses=tuple(Miss(*miss) for miss in told["misses"]),
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._llm.closed:
            self.close()

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        _C.session_drop(self._engine, self._id)

    def __repr__(self) -> str:
        return f"Session(id={self._id}, tenant={self._tenant!r})"

    # -- inside --------------------------------------------------------------------------------------------------

    def _submit_chat(
        self, messages: Sequence[Message], params: SamplingParams | None, tools: Sequence[Message] | None
    ) -> Handle:  # fmt: skip
        self._settle()
        params = self._llm.default_sampling_params if params is None else params
        length = _C.session_length(self._engine, self._id)
        so_far = self._chat
        use = self._llm._tool_use(tools) if tools is not None else None if so_far is None else so_far.tools
        if so_far is not None and length != so_far.num_tokens + len(so_far.answer._completion().token_ids):
            so_far = None  # the turn was refused
        if so_far is None:
            turn = begin(self._llm, messages, use, self.token_ids)
        else:
            turn = go_on(self._llm, so_far, messages, use)
        make_handle: Callable[..., Handle] = Handle
        if use is not None:
            from paged.tool_use import ToolHandle

            use.check(params)
            make_handle = functools.partial(ToolHandle, use)
        handle = self._submit(turn.token_ids, params, 0, keeps_answer=True, make_handle=make_handle)
        self._chat = Conversation(turn.messages, turn.text, length + len(turn.token_ids), use, handle)
        return handle

    def _submit(
        self, prompt: Prompt, params: SamplingParams, priority: int, *, keeps_answer: bool,
        make_handle: Callable[..., Handle] = Handle,
    ) -> Handle:  # fmt: skip
        if not isinstance(params, SamplingParams):
            raise TypeError(f"expected SamplingParams, got {params!r}")
        if params.n != 1 or params.prompt_logprobs is not None:
            raise ValueError("a turn has one answer and no prompt_logprobs: use fork(), or LLM.generate")
        self._settle()
        length = _C.session_length(self._engine, self._id)
        token_ids = self._ids(prompt, begins=length == 0)
        total = length + len(token_ids)
        if not token_ids or total >= self._llm.max_model_len:
            raise ValueError(
                f"a turn appends at least one token, and the session may then have at most "
                f"{self._llm.max_model_len - 1}; got {len(token_ids)} tokens after {length}"
            )
        self._turn = self._llm._submit_turn(
            self._id, token_ids, params, priority, num_prompt_tokens=total, keeps_answer=keeps_answer,
            make_handle=make_handle,
        )  # fmt: skip
        self._appends = not keeps_answer
        return self._turn

    def _settle(self) -> None:
        """Waits for what append() computes.

        Raises:
            RuntimeError: a turn that generates has not ended.
        """
        if self._turn is None or self._turn.done():
            return
        if not self._appends:
            raise RuntimeError("the session's turn has not ended: wait for it, or cancel it")
        self._turn._wait_finished()

    def _ids(self, prompt: Prompt, *, begins: bool) -> list[int]:
        if isinstance(prompt, str) and not begins:
            return self._llm.tokenizer.encode(prompt, add_special_tokens=False)
        return self._llm._token_ids(prompt if isinstance(prompt, str) else list(prompt))

    def _receipt(self, given: tuple[str, int, float, str]) -> Receipt:
        return receipt_of(given, self._llm._bytes_per_block)


def receipt_of(given: tuple[str, int, float, str], bytes_per_block: int) -> Receipt:
    status, num_blocks, until, reason = given
    return Receipt(status, num_blocks * bytes_per_block, until or None, reason)  # type: ignore[arg-type]


def open_session(llm: LLM, parent: Session | Prefix | None, tenant: str | None, weight: float | None) -> Session:
    """As `LLM.session`."""
    if weight is not None and not 0 < weight < math.inf:
        raise ValueError(f"weight takes a number above 0, got {weight!r}")
    if parent is None:
        tenant = "" if tenant is None else tenant
        return Session(llm, _C.session_open(llm._running_engine(), tenant, 1.0 if weight is None else weight), tenant)
    source = parent if isinstance(parent, Session) else parent._session
    if source._llm is not llm:
        raise ValueError("the parent is of another LLM: its blocks cannot be shared")
    if tenant is not None and tenant != source._tenant:
        raise ValueError(f"tenants share no blocks: the parent is of {source._tenant!r}, got {tenant!r}")
    return source._fork(weight)


def _quantiles(expect: Expectation | None) -> list[tuple[float, float]]:
    if expect is None:
        return []
    if isinstance(expect, int | float):
        expect = [(0.5, expect)]
    quantiles = [(float(share), float(seconds)) for share, seconds in expect]
    if not all(0 < share < 1 and 0 <= seconds < math.inf for share, seconds in quantiles):
        raise ValueError(f"expect takes seconds, or (share, seconds) with shares in (0, 1), got {expect!r}")
    if any(a[0] >= b[0] or a[1] > b[1] for a, b in itertools.pairwise(quantiles)):
        raise ValueError(f"quantiles are in ascending order, got {expect!r}")
    return quantiles
