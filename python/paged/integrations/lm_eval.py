# SPDX-License-Identifier: Apache-2.0
"""EleutherAI's evaluation harness over an engine in this process: `pip install lm_eval`.

>>> import lm_eval
>>> from paged.integrations.lm_eval import PagedLM
>>> with paged.LLM("smollm2-135m") as llm:
...     results = lm_eval.simple_evaluate(model=PagedLM(llm), tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from paged.llm import LLM, TokenIds
from paged.outputs import RequestError
from paged.sampling import SamplingParams

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class PagedLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model of the harness. Its results are those of the harness's own `hf` model.

    Args:
        llm: the engine; whoever made it closes it.
        max_gen_toks: most tokens of an answer where the task does not say.
        add_bos_token: False: leave out what the tokenizer puts around a text.
        prefix_token_id: the token before a text that has no prompt; None: the beginning of a text, else its end.
        use_tqdm: a progress bar.

    A task whose generation asks for what `SamplingParams` cannot do raises ValueError.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        max_gen_toks: int = 256,
        add_bos_token: bool = True,
        prefix_token_id: int | None = None,
        use_tqdm: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(llm, LLM):
            raise TypeError(f"PagedLM takes an LLM, got {type(llm).__name__}: PagedLM(paged.LLM(model))")
        self._llm = llm
        self._max_gen_toks = max_gen_toks
        self._add_bos_token = add_bos_token
        self._prefix_token_id = prefix_token_id
        self._use_tqdm = use_tqdm

    # -- what the harness asks about the model -------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        token = self._llm.tokenizer.eos_token_id
        if token is None:
            raise ValueError("this model names no end-of-sequence token; give prefix_token_id")
        return token

    @property
    def prefix_token_id(self) -> int:
        for token in (self._prefix_token_id, self._llm.tokenizer.bos_token_id):
            if token is not None:
                return token
        return self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens that are computed for one text; a score has one token more."""
        return self._llm.max_model_len - 1

    @property
    def tokenizer_name(self) -> str:
        return repr(self._llm).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> TokenIds:
        if add_special_tokens is None:
            add_special_tokens = self._add_bos_token and not string.startswith(self._bos_text())
        return self._llm.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _bos_text(self) -> tuple[str, ...]:
        bos = self._llm.tokenizer.bos_token_id
        return () if bos is None else (self._llm.tokenizer.decode([bos], skip_special_tokens=False),)

    # -- what it asks of it --------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, TokenIds, TokenIds]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Of (key, context, continuation) each; what is too long is cut off at its beginning."""
        pairs = [_fitting(context, continuation, self.max_length + 1) for _, context, continuation in requests]
        scores = self._llm.score(pairs, use_tqdm=self._use_tqdm and not disable_tqdm)
        results = [(score.logprob, score.is_greedy) for score in scores]
        for (key, *_), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that fit."""
        windows: list[tuple[int, TokenIds, TokenIds]] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            windows += [(index, *make_disjoint_window(part)) for part in parts]
        scores = self._loglikelihood_tokens([(None, *window[1:]) for window in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for window, (logprob, _) in zip(windows, scores, strict=True):
            totals[window[0]] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        params = [self._sampling_params(request.args[1]) for request in requests]
        prompts = [self._prompt(request.args[0], own.max_tokens) for request, own in zip(requests, params, strict=True)]
        answers = self._llm.generate(prompts, params, use_tqdm=self._use_tqdm and not disable_tqdm)
        for request, answer in zip(requests, answers, strict=True):
            if answer.error is not None:
                raise RequestError(answer.error, answer)
            self.cache_hook.add_partial("generate_until", request.args, answer.text)
        return [answer.text for answer in answers]

    def _prompt(self, text: str, max_tokens: int | None) -> TokenIds:
        """Cut off at its beginning, so that the answer fits behind it."""
        room = self._llm.max_model_len - (max_tokens or 0)
        if room < 1:
            raise ValueError(
                f"an answer of {max_tokens} tokens leaves no room for a prompt: max_model_len is "
                f"{self._llm.max_model_len}; give PagedLM a smaller max_gen_toks"
            )
        return self.tok_encode(text)[-room:]

    def _sampling_params(self, asked: Mapping[str, Any]) -> SamplingParams:
        settings = dict(asked)
        lengths = [settings.pop(name) for name in _LENGTHS if settings.get(name) is not None]
        until = settings.pop("until", None) or []
        samples = settings.pop("do_sample", None)
        sampling = {name: settings.pop(name) for name in _SAMPLING if settings.get(name) is not None}
        if samples is False or "temperature" not in sampling:
            sampling["temperature"] = 1.0 if samples else 0.0
        unknown = sorted(name for name, value in settings.items() if value is not None)
        if unknown:
            raise ValueError(f"the task's generation settings {unknown} have no counterpart in SamplingParams")
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        return SamplingParams(max_tokens=int(lengths[0]) if lengths else self._max_gen_toks, stop=stop, **sampling)

    # -- chats ---------------------------------------------------------------------------------------------------

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's own template, which the harness records."""
        if isinstance(chat_template, str):
            raise ValueError(f"a model has one chat template here, got the name {chat_template!r}")
        return self._llm._template().text if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Without a generation prompt the text ends in the last message, which the model then continues."""
        text = self._llm._template().render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        if last not in text:
            raise ValueError("the chat template changes the last message, so that it cannot be continued")
        return text[: text.rindex(last) + len(last)]


def _fitting(context: TokenIds, continuation: TokenIds, max_tokens: int) -> tuple[TokenIds, TokenIds]:
    if len(continuation) >= max_tokens:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens does not fit behind a prompt: together they are at most "
            f"{max_tokens}; open the LLM with a larger max_model_len"
        )
    return context[-(max_tokens - len(continuation)) :], continuation
