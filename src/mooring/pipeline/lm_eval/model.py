"""The transformers engine as a model of lm-evaluation-harness, for any of its tasks.

Imported only when lm-eval is about to run: `import lm_eval` is slow. The class is registered as `mooring` for lm-eval's
own command line: `--model mooring --model_args base=…,tuned=…,lam=0.6`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from mooring.chat import render, tokenize
from mooring.config import section
from mooring.errors import DataError
from mooring.events import Event, OnEvent, ignore
from mooring.inference.decode import MAX_LOGITS, decode, pad_left
from mooring.inference.encode import decode_parts, opens_block
from mooring.inference.engine import plan_batches, unfinished
from mooring.inference.transformers import TransformersEngine
from mooring.models.classes import vocab_size
from mooring.pipeline.lm_eval.cache import AnswerCache
from mooring.pipeline.lm_eval.evaluate import open_engine
from mooring.records import Message, sample_key
from mooring.sampling import SamplingParams
from mooring.thinking import has_marks, split_thoughts

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context (at least one) and of its continuation."""
LogLikelihood = tuple[float, bool]
"""Σ log p of a continuation's tokens, in nats, and whether each of them is the most likely one."""

MAX_GEN_TOKS = 256
"""Maximum length of a response if a task sets none, as in lm-eval's class for Hugging Face models."""
_NO_EFFECT: Mapping[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "min_length": 0}
"""Other generation settings that tasks set, and the value at which each has no effect."""


@register_model("mooring")
class MooringLM(TemplateLM):
    """A `TransformersEngine` as a model of lm-eval.

    Prompts that do not fit the context are truncated on the left, as in lm-eval's own class for Hugging Face models;
    `truncated` counts them. Sampling is seeded per prompt and repeat, whatever the batch.

    Args:
        engine: The model. Its system prompt is not used here: lm-eval renders prompts itself (`apply_chat_template`).
        seed: Seed of sampling, for tasks that sample.
        cache: A file with the answers so far, written per batch, so that an interrupted run resumes.
        made_by: What the answers in it depend on besides engine, seed and request, such as the model's digest.
        on_event: Receives a progress event (`lm_eval`, in requests) after each batch.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        *,
        seed: int = 42,
        cache: Path | None = None,
        made_by: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.seed = seed
        self.tokenizer = engine.tokenizer
        self._device = engine.model.device
        self._emit = on_event or ignore
        self._stop_tokens = StopTokens(engine.tokenizer)
        self._cache = AnswerCache(cache, {**(made_by or {}), "engine": dict(engine.about), "seed": seed})
        self._truncated: set[tuple[str | None, int | None]] = set()
        self._questions: list[tuple[str | None, int | None]] = []

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "MooringLM":
        """Build from the parameters of `open_engine`, as lm-eval's command line passes them."""
        extra = {k: v for k, v in (additional_config or {}).items() if v is not None and k in ("batch_size", "device")}
        arguments = {**arg_dict, **extra}

        def take(*names: str) -> dict[str, Any]:
            return {name: arguments.pop(name) for name in names if name in arguments}

        folders = map(Path, take("base", "tuned").values())
        runner = section("generate", take("batch_size", "dtype", "device"))
        return cls(open_engine(*folders, **take("lam", "method", "system"), runner=runner, options=arguments))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "MooringLM":
        """Build from `base=…,tuned=…,lam=0.6`."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The context of a text that has none: BOS, or the end of a text for a tokenizer without BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Context length of the model, in tokens."""
        return int(resolve_max_length(self.engine.model.config, self.tokenizer))

    @property
    def max_gen_toks(self) -> int:
        """Maximum length of a response if a task sets none, in tokens."""
        return MAX_GEN_TOKS

    @property
    def batch_size(self) -> int:
        """Maximum number of requests per batch."""
        return self.engine.batch_size

    @property
    def tokenizer_name(self) -> str:
        """The key of lm-eval's own request cache: the tokenizer's name, and a digest of its chat template."""
        digest = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
        return f"{Path(str(self.tokenizer.name_or_path)).name}-{digest}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenize a text; by default with exactly one BOS if the tokenizer adds one."""
        if add_special_tokens is None:
            return tokenize(self.tokenizer, string)
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decode tokens to text."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation by the model's chat template, with or without a system role.

        Args:
            chat_history: Messages with `role` and `content`.
            add_generation_prompt: Open the assistant's turn; otherwise the last message is the beginning of the answer.

        Raises:
            ModelError: There is no template, or it rejects the conversation.
        """
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]
        if add_generation_prompt:
            return render(self.tokenizer, messages)
        return render(self.tokenizer, messages[:-1]) + messages[-1].content

    @property
    def truncated(self) -> Counter[str | None]:
        """Number of questions per task with a prompt that was truncated on the left."""
        return Counter(task for task, _ in self._truncated)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """Log-likelihoods of continuations, in nats, and whether each is the model's own greedy continuation."""
        self._questions = [(request.task_name, request.doc_id) for request in requests]
        answers: list[LogLikelihood] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in nats; a long text in disjoint windows of the context's length."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._log_likelihoods(pairs), strict=True):
            sums[owner] += value
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[LogLikelihood]:
        for question, (_text, start, end) in zip(self._questions, requests, strict=True):
            if len(start) + len(end) > self.max_length + 1:  # the last token is predicted, not read
                self._truncated.add(question)
        return self._log_likelihoods([(start, end) for _, start, end in requests])

    def _log_likelihoods(self, pairs: Sequence[Pair]) -> list[LogLikelihood]:
        """Score continuations in batches of similar length; pairs that differ in the last token share a forward pass.

        A batch with a missing answer is computed whole, so that the numbers are those of an uninterrupted run. An empty
        continuation has (0.0, True).

        Raises:
            DataError: A continuation alone is longer than the context (`data.context_exceeded`).
        """
        context = self.max_length
        keys = [self._cache.key("loglikelihood", list(start), list(end), context) for start, end in pairs]
        numbers_of: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> the pairs that it answers
        for number, (start, end) in enumerate(pairs):
            if len(end) > context:
                what = f"lm-eval: a continuation of {len(end)} tokens does not fit the model's context of {context}"
                raise DataError(what, "choose a model with a longer one", code="data.context_exceeded")
            if end:
                numbers_of.setdefault((*start, *end)[-(context + 1) :][:-1], []).append(number)
        inputs = list(numbers_of)
        # Logits take the memory: they are computed for the longest continuation of a batch, in each row.
        longest = max((len(end) for _, end in pairs), default=1)
        most = MAX_LOGITS // (vocab_size(self.engine.model.config) * max(1, longest))
        done = 0
        for batch in plan_batches([len(row) for row in inputs], max(1, min(self.batch_size, most))):
            rows = [inputs[i] for i in batch]
            numbers = [number for row in rows for number in numbers_of[row]]
            if any(keys[number] not in self._cache for number in numbers):
                span = max(len(pairs[number][1]) for number in numbers)
                log_probs = last_log_probs(self.engine.model, rows, span, self.engine.pad)
                self._cache.add(
                    {
                        keys[number]: continuation_score(row_log_probs, pairs[number][1])
                        for row, row_log_probs in zip(rows, log_probs, strict=True)
                        for number in numbers_of[row]
                    }
                )
            done += len(batch)
            self._progress(done, len(inputs))
        return [(*self._cache[key],) if end else (0.0, True) for key, (_, end) in zip(keys, pairs, strict=True)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts; each answer ends before the first of its stop strings.

        Raises:
            DataError: A task needs a generation setting that the engine does not have, or more new tokens than the
                context.
        """
        groups: dict[str, list[int]] = {}  # requests with equal settings are batched together
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        sample_keys = _sample_keys([request.args[0] for request in requests])
        done = 0
        for numbers in groups.values():
            params, until = self._params(requests[numbers[0]].args[1])
            room = self.max_length - params.max_tokens
            encoded = [self.tok_encode(requests[n].args[0]) for n in numbers]
            self._truncated |= {
                (requests[n].task_name, requests[n].doc_id)
                for n, row in zip(numbers, encoded, strict=True)
                if len(row) > room
            }
            rows = [row[-room:] for row in encoded]
            keys = [
                self._cache.key("generate_until", *requests[n].args, sample_keys[n], self.max_length) for n in numbers
            ]
            batches = plan_batches([len(row) for row in rows], self.batch_size)
            pending = unfinished(batches, keys, [key for key in keys if key in self._cache])
            done += len(rows) - sum(len(batch) for batch in pending)
            self._progress(done, len(requests))
            ended = self._stop_tokens.detector(until)
            stops = self.engine.stops
            if has_marks(str(self.tokenizer.chat_template)):
                # A stop string ends an answer, and not the thoughts before it.
                opened = any(opens_block(self.tokenizer, row) for row in rows)
                ended = self._ends_answer(ended, until, opened)
            else:
                stops |= self._stop_tokens.containing(until)
            for batch in pending:
                responses = decode(
                    self.engine.model,
                    [rows[i] for i in batch],
                    [sample_keys[numbers[i]] for i in batch],
                    params,
                    stops,
                    self.engine.pad,
                    ended,
                )
                self._cache.add(
                    {
                        keys[i]: postprocess_generated_text(self._text(tokens, rows[i]), until, None)
                        for i, tokens in zip(batch, responses, strict=True)
                    }
                )
                done += len(batch)
                self._progress(done, len(requests))
            for number, key in zip(numbers, keys, strict=True):
                answers[number] = self._cache[key]
        return answers

    def _text(self, tokens: list[int], prompt: Sequence[int]) -> str:
        """The answer in the tokens of a response; what was thought before it is not scored."""
        return decode_parts(self.tokenizer, tokens[:-1] if tokens[-1] in self.engine.stops else tokens, prompt)[1]

    def _ends_answer(
        self, ended: Callable[[Sequence[int]], bool], until: Sequence[str], opened: bool
    ) -> Callable[[Sequence[int]], bool]:
        """A function that returns whether a stop string is in the answer after the thoughts of a response."""

        def answer_ended(tokens: Sequence[int]) -> bool:
            if not ended(tokens):
                return False
            answer = split_thoughts(self.tok_decode(tokens, False), opened=opened).answer
            return any(stop in answer for stop in until if stop)

        return answer_ended

    def _params(self, requested: Mapping[str, Any]) -> tuple[SamplingParams, list[str]]:
        """Sampling parameters and stop strings from a task's generation settings."""
        settings = dict(normalize_gen_kwargs(dict(requested), self.max_gen_toks))
        until = handle_stop_sequences(settings.pop("until"), eos=self.tok_decode([self.eot_token_id], False))
        max_tokens, sample = settings.pop("max_gen_toks"), settings.pop("do_sample")
        temperature = settings.pop("temperature", None)
        temperature = float(1.0 if temperature is None else temperature) if sample else 0.0
        known = {name: settings.pop(name) for name in ("top_p", "top_k", "repetition_penalty") if name in settings}
        if unknown := sorted(k for k, v in settings.items() if k not in _NO_EFFECT or v != _NO_EFFECT[k]):
            what = f"lm-eval: a task sets {', '.join(unknown)}"
            raise DataError(what, "the engine has no such setting", code="data.unsupported_generation")
        if max_tokens >= self.max_length:
            what = f"lm-eval: a task needs {max_tokens} new tokens of a model with a context of {self.max_length}"
            raise DataError(what, "choose a model with a longer one", code="data.context_exceeded")
        return SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=self.seed, **known), until

    def _progress(self, done: int, total: int) -> None:
        self._emit(Event(step="lm_eval", kind="progress", done=done, total=total, unit="requests"))


@torch.inference_mode()
def last_log_probs(model: Any, rows: Sequence[Sequence[int]], span: int, pad: int) -> torch.Tensor:
    """log p of each token at the last `span` positions: (rows, span, vocabulary), float32."""
    ids, mask, positions = pad_left(rows, pad, model.device)
    span = min(span, ids.shape[1])
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=span
    ).logits
    return torch.log_softmax(logits[:, -span:].float(), -1)


def continuation_score(log_probs: torch.Tensor, continuation: Sequence[int]) -> LogLikelihood:
    """Score a continuation from log p at (span, vocabulary) positions that end with it."""
    tail = log_probs[-len(continuation) :]
    tokens = torch.tensor(list(continuation), device=tail.device)
    total = tail.gather(-1, tokens[:, None]).double().sum().item()
    return total, bool((tail.argmax(-1) == tokens).all())


class StopTokens:
    """Detects stop strings in generated tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._containing: dict[tuple[str, ...], frozenset[int]] = {}

    def containing(self, stops: Sequence[str]) -> frozenset[int]:
        """The tokens of the vocabulary whose text contains one of these strings: each of them ends a response."""
        strings = tuple(stop for stop in stops if stop)
        if strings not in self._containing:
            if not self._texts:
                self._texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
            self._containing[strings] = frozenset(
                token for token, text in enumerate(self._texts) if any(stop in text for stop in strings)
            )
        return self._containing[strings]

    def detector(self, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """A function that returns whether a response's last tokens spell one of these strings."""
        strings = [stop for stop in stops if stop]
        # A character takes at most four tokens (one per byte); a window that is too long costs only time.
        window = 4 * max(map(len, strings), default=0)
        return lambda tokens: any(stop in self._tokenizer.decode(list(tokens[-window:])) for stop in strings)


def _sample_keys(prompts: Sequence[str]) -> list[str]:
    """The keys that seed the sampling: a digest of the prompt, and how many times it occurred before."""
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        keys.append(sample_key(digest, seen[digest]))
        seen[digest] += 1
    return keys
