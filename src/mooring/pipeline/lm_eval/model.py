"""Mooring's engine as a model of lm-evaluation-harness: any of its tasks runs on a base, a tuned model or a merge.

Imported only where lm-eval is to run: the import of `lm_eval` is slow. It registers the class as `mooring`, so that
lm-eval's own command line may use it, too, with `--model_args base=…,tuned=…,lam=0.6`.
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
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length

from mooring.chat import has_system_role, render, tokenize
from mooring.errors import DataError
from mooring.inference.decode import decode, pad_left
from mooring.inference.engine import plan_batches, unfinished
from mooring.inference.transformers import LOGITS, TransformersEngine
from mooring.pipeline.lm_eval.cache import Kept
from mooring.pipeline.lm_eval.evaluate import open_engine
from mooring.records import Message, sample_key
from mooring.sampling import SamplingParams

# --- Stop strings: where a response is cut, and which single tokens already hold one ---


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first stop string in it, without that string; empty ones are passed over.

    One after the other, as lm-eval does it: it matters where two stop strings overlap.
    """
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


class StopTokens:
    """The tokens of a vocabulary whose text holds a stop string: with one of them a response is over.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._found: dict[tuple[str, ...], frozenset[int]] = {}

    def of(self, until: Sequence[str]) -> frozenset[int]:
        """The tokens that hold one of these strings."""
        wanted = tuple(stop for stop in until if stop)
        if wanted not in self._found:
            if not self._texts:
                self._texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
            self._found[wanted] = frozenset(
                token for token, text in enumerate(self._texts) if any(stop in text for stop in wanted)
            )
        return self._found[wanted]

    def spelled(self, until: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """Whether the last of a row's tokens spell one of these strings, over however many of them it is spread."""
        wanted = [stop for stop in until if stop]
        # A character takes a token at most four times (a byte each); a window that is too long costs only time.
        span = 4 * max(map(len, wanted), default=0)
        return lambda made: any(stop in self._tokenizer.decode(list(made[-span:])) for stop in wanted)


# --- How likely continuations are after their contexts, as lm-eval asks for it: tokens in, ---


Row = tuple[int, ...]
Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context (at least one) and of its continuation."""
Likely = tuple[float, bool]
"""Sum of log p of a continuation's tokens, in nats, and whether each of them is the likeliest."""


def log_likelihoods(
    model: Any,
    pairs: Sequence[Pair],
    *,
    pad: int,
    batch_size: int,
    context: int,
    on_progress: Callable[[int, int], None] | None = None,
    known: Mapping[int, Likely] | None = None,
    on_batch: Callable[[Mapping[int, Likely]], None] | None = None,
) -> list[Likely]:
    """Score continuations, in batches of similar length; what several share (all but a last token) is computed once.

    Args:
        model: A causal model of transformers, in evaluation mode.
        pairs: Contexts with continuations. One that is too long loses tokens on its left.
        pad: Any token.
        batch_size: Most rows a batch.
        context: Most tokens that the model takes.
        on_progress: Called with (rows done, rows in all) after every batch.
        known: Answers from before by their pairs' numbers. A batch of which all are known is not computed again; any
            other is as a whole, so that the numbers are those of a run that was never stopped.
        on_batch: Given the answers of every batch that was computed.

    Returns:
        One for each pair, in their order. An empty continuation has 0.0 and True.

    Raises:
        DataError: A continuation alone is longer than the context.
    """
    wanted: dict[Row, list[int]] = {}  # what the model reads to the pairs that it tells of
    for number, (start, end) in enumerate(pairs):
        if len(end) > context:
            raise DataError(
                f"lm-eval: a continuation of {len(end)} tokens does not fit the model's context of {context}",
                "choose a model with a longer one",
            )
        if end:
            wanted.setdefault(_read(start, end, context), []).append(number)
    answers: list[Likely] = [(0.0, True)] * len(pairs)
    inputs = list(wanted)
    # Logits are what takes the memory: they are made for the longest continuation of a batch, in every row.
    longest = max((len(end) for _, end in pairs), default=1)
    most = LOGITS // (model.config.get_text_config().vocab_size * max(1, longest))
    done, known = 0, known or {}
    for batch in plan_batches([len(row) for row in inputs], max(1, min(batch_size, most))):
        rows = [inputs[i] for i in batch]
        asked = [number for row in rows for number in wanted[row]]
        found = {number: known[number] for number in asked if number in known}
        if len(found) < len(asked):
            span = max(len(pairs[number][1]) for number in asked)
            for row, chances in zip(rows, _last_chances(model, rows, span, pad), strict=True):
                found |= {number: _likely(chances, pairs[number][1]) for number in wanted[row]}
            if on_batch:
                on_batch(found)
        for number in asked:
            answers[number] = found[number]
        done += len(batch)
        if on_progress:
            on_progress(done, len(inputs))
    return answers


def _read(start: Sequence[int], end: Sequence[int], context: int) -> Row:
    """What the model reads: all but the last token, which it only has to guess."""
    return (*start, *end)[-(context + 1) :][:-1]


@torch.inference_mode()
def _last_chances(model: Any, rows: Sequence[Row], span: int, pad: int) -> torch.Tensor:
    """log p of every token at the last positions: (rows, span, vocabulary), float32."""
    ids, mask, positions = pad_left(rows, pad, model.device)
    span = min(span, ids.shape[1])
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=span
    ).logits
    return torch.log_softmax(logits[:, -span:].float(), -1)


def _likely(chances: torch.Tensor, end: Sequence[int]) -> Likely:
    """The score of a continuation, from log p at (span, vocabulary) positions that end with it."""
    tail = chances[-len(end) :]
    tokens = torch.tensor(list(end), device=tail.device)
    picked = tail.gather(-1, tokens[:, None]).double().sum().item()
    return picked, bool((tail.argmax(-1) == tokens).all())


Progress = Callable[[int, int], None]
"""Called with (requests done, requests of this kind in all) after every batch."""

MAX_GEN_TOKS = 256
"""Longest response where a task names none, as lm-eval has it for Hugging Face models."""


@register_model("mooring")
class MooringLM(TemplateLM):
    """An engine on transformers, asked by lm-eval.

    Prompts that do not fit the context lose tokens on their left, as lm-eval's own class for Hugging Face models does
    it; how many do, `cut` tells. Sampling is seeded by the engine's way: per prompt and repeat, whatever the batch.

    Args:
        engine: The model. Its system prompt is not used here: lm-eval renders prompts itself (`apply_chat_template`).
        seed: Seed of sampling, for tasks that sample.
        on_progress: Told how far it is.
        keep: A file in which answers are kept batch by batch: asked again, it goes on from there.
        made_by: What the answers in it hang on besides engine, seed and request, such as the model's digest.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        *,
        seed: int = 42,
        on_progress: Progress | None = None,
        keep: Path | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.seed = seed
        self.tokenizer = engine.tokenizer
        self._device = engine.model.device
        self._on_progress = on_progress
        self._stop_tokens = StopTokens(engine.tokenizer)
        self._kept = Kept(keep, {**(made_by or {}), "engine": dict(engine.about), "seed": seed})
        self._cut: set[tuple[str | None, int | None]] = set()
        self._questions: list[tuple[str | None, int | None]] = []

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "MooringLM":
        """From the arguments of `merged.open_engine`, as lm-eval's command line gives them; for lm-eval's registry."""
        given = {k: v for k, v in (additional_config or {}).items() if v is not None and k in ("batch_size", "device")}
        arguments: dict[str, Any] = {**arg_dict, **given}
        if "batch_size" in arguments:
            arguments["batch_size"] = int(arguments["batch_size"])
        return cls(open_engine(**arguments))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "MooringLM":
        """From `base=…,tuned=…,lam=0.6`; for lm-eval's registry."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing else stands before: BOS, or without one the end of a text."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Most tokens that the model takes."""
        return int(resolve_max_length(self.engine.model.config, self.tokenizer))

    @property
    def max_gen_toks(self) -> int:
        """Longest response where a task names none, in tokens."""
        return MAX_GEN_TOKS

    @property
    def batch_size(self) -> int:
        """Most requests in a batch."""
        return self.engine.batch_size

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's own cache of requests: that of the tokenizer, and a digest of its chat template."""
        digest = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
        return f"{Path(str(self.tokenizer.name_or_path)).name}-{digest}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; with one BOS where the tokenizer has the habit of one, unless told otherwise."""
        if add_special_tokens is None:
            return tokenize(self.tokenizer, string)
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation by the model's chat template; a template without a system role is dealt with.

        Args:
            chat_history: Messages with `role` and `content`.
            add_generation_prompt: Open the assistant's turn; else the last message is the begun answer.

        Raises:
            ModelError: There is no template, or it refuses the conversation.
        """
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]
        if add_generation_prompt:
            return render(self.tokenizer, messages)
        return render(self.tokenizer, messages[:-1]) + messages[-1].content

    def takes_system(self) -> bool:
        """Whether the chat template shows the model a system message; of one that does not, none is to be told."""
        return has_system_role(self.tokenizer)

    @property
    def cut(self) -> Counter[str | None]:
        """How many questions of each task had a prompt that lost tokens on its left."""
        return Counter(task for task, _ in self._cut)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in nats; a long one in windows of the context that do not overlap."""
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
        for owner, (value, _) in zip(owners, self._score(pairs), strict=True):
            sums[owner] += value
        return sums

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Likely]:
        """Log-likelihoods of continuations, in nats, and whether each is what the model itself would say."""
        self._questions = [(request.task_name, request.doc_id) for request in requests]
        found: list[Likely] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Likely]:
        for question, (_text, start, end) in zip(self._questions, requests, strict=True):
            if len(start) + len(end) > self.max_length + 1:  # the last token is only guessed, not read
                self._cut.add(question)
        return self._score([(start, end) for _, start, end in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[Likely]:
        keys = [self._kept.key("loglikelihood", list(start), list(end), self.max_length) for start, end in pairs]
        known = {number: (*self._kept[key],) for number, key in enumerate(keys) if key in self._kept}
        return log_likelihoods(
            self.engine.model,
            pairs,
            pad=self.engine.pad,
            batch_size=self.batch_size,
            context=self.max_length,
            on_progress=self._on_progress,
            known=known,
            on_batch=lambda found: self._kept.add({keys[number]: answer for number, answer in found.items()}),
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts, each cut before the first of its stop strings.

        Raises:
            DataError: A task asks for a setting that the engine does not have, or for more new tokens than the context.
        """
        groups: dict[str, list[int]] = {}  # requests of the same settings go together
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        keys = _keys([request.args[0] for request in requests])
        done = 0
        for numbers in groups.values():
            settings, until = self._settings(requests[numbers[0]].args[1])
            room = self.max_length - settings.max_tokens
            whole = [self.tok_encode(requests[n].args[0]) for n in numbers]
            self._cut |= {
                (requests[n].task_name, requests[n].doc_id)
                for n, row in zip(numbers, whole, strict=True)
                if len(row) > room
            }
            rows = [row[-room:] for row in whole]
            asked = [
                self._kept.key("generate_until", requests[n].args[0], requests[n].args[1], keys[n], self.max_length)
                for n in numbers
            ]
            batches = plan_batches([len(row) for row in rows], self.batch_size)
            left = unfinished(batches, asked, [key for key in asked if key in self._kept])
            stops = self.engine.stops | self._stop_tokens.of(until)
            done += len(rows) - sum(len(batch) for batch in left)
            if self._on_progress:
                self._on_progress(done, len(requests))
            for batch in left:
                made = decode(
                    self.engine.model,
                    [rows[i] for i in batch],
                    [keys[numbers[i]] for i in batch],
                    settings,
                    stops,
                    self.engine.pad,
                    self._stop_tokens.spelled(until),
                )
                self._kept.add(
                    {asked[i]: cut(self._text(tokens), until) for i, tokens in zip(batch, made, strict=True)}
                )
                done += len(batch)
                if self._on_progress:
                    self._on_progress(done, len(requests))
            for number, key in zip(numbers, asked, strict=True):
                answers[number] = self._kept[key]
        return answers

    def _text(self, tokens: list[int]) -> str:
        ended = tokens[-1] in self.engine.stops
        return self.tok_decode(tokens[:-1] if ended else tokens)

    def _settings(self, asked: Mapping[str, Any]) -> tuple[SamplingParams, list[str]]:
        """The engine's settings, and the stop strings, for what a task asks."""
        given = dict(normalize_gen_kwargs(dict(asked), self.max_gen_toks))
        until = handle_stop_sequences(given.pop("until"), eos=self.tok_decode([self.eot_token_id], False))
        longest, sample = given.pop("max_gen_toks"), given.pop("do_sample")
        temperature = given.pop("temperature", None)
        temperature = float(1.0 if temperature is None else temperature) if sample else 0.0
        drawn = {name: given.pop(name) for name in ("top_p", "top_k", "repetition_penalty") if name in given}
        if odd := sorted(k for k, v in given.items() if k not in _ASKS_NOTHING or v != _ASKS_NOTHING[k]):
            raise DataError(f"lm-eval: a task asks for {', '.join(odd)}", "the engine has no such setting")
        if longest >= self.max_length:
            raise DataError(
                f"lm-eval: a task asks for {longest} new tokens of a model with a context of {self.max_length}",
                "choose a model with a longer one",
            )
        return SamplingParams(max_tokens=longest, temperature=temperature, seed=self.seed, **drawn), until


_ASKS_NOTHING: Mapping[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "min_length": 0}
"""Other settings that tasks name, and the value at which each asks for nothing."""


def _keys(prompts: Sequence[str]) -> list[str]:
    """What seeds the sampling of each: a digest of the prompt, and which of its repeats it is."""
    seen: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        keys.append(sample_key(digest, seen.setdefault(digest, 0)))
        seen[digest] += 1
    return keys
