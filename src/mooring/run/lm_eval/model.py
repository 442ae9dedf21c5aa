"""Mooring's engine as a model of lm-evaluation-harness: any of its tasks runs on a base, a tuned model or a merge.

Imported only where lm-eval is to run: the import of `lm_eval` is slow. It registers the class as `mooring`, so that
lm-eval's own command line may use it, too, with `--model_args base=…,tuned=…,lam=0.6`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length

from mooring.chat import has_system_role, render, tokenize
from mooring.errors import DataError
from mooring.generate.decode import decode
from mooring.generate.engine import Settings, pending, plan
from mooring.generate.transformers_engine import TransformersEngine
from mooring.records import Message, sample_key
from mooring.run.lm_eval.kept import Kept
from mooring.run.lm_eval.likelihood import Likely, Pair, log_likelihoods
from mooring.run.lm_eval.merged import open_engine
from mooring.run.lm_eval.stopping import StopTokens, cut

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
            room = self.max_length - settings.max_new_tokens
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
            batches = plan([len(row) for row in rows], self.batch_size)
            left = pending(batches, asked, [key for key in asked if key in self._kept])
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

    def _settings(self, asked: Mapping[str, Any]) -> tuple[Settings, list[str]]:
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
        return Settings(max_new_tokens=longest, temperature=temperature, seed=self.seed, **drawn), until


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
