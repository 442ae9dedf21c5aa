"""The engine on a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, `transformers serve`, or a paid one."""

import contextlib
import dataclasses
import functools
import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from mooring.chat import DEFAULT_SYSTEM, PINNED, fold_system, with_system
from mooring.errors import DataError, ModelError, UserError
from mooring.inference.encode import name_of, response_seed
from mooring.inference.engine import check_prompts, sample_indices
from mooring.inference.http import Clock, Gate, Passing, Persistence, Refused, in_parallel, open_server, short
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams

# --- What to tell the user when a server will not answer a request ---


def explained(
    refusal: Refused, prompt: Prompt, body: Mapping[str, Any], path: str, base: str, models: Sequence[str]
) -> UserError:
    """A refusal as an error that names what is to be mended, and repeats no prompt.

    Args:
        refusal: What the server answered.
        prompt: What was asked.
        body: The request's body.
        path: The request's path.
        base: The server's address.
        models: Those that the server lists, if it does.
    """
    text = short(without_prompt(refusal.text, prompt))
    if CONTEXT.search(refusal.text) or refusal.status == 413:
        return DataError(
            f"{name_of(prompt)}: does not fit the model's context ({text})",
            "shorten it, or lower generate.max_tokens",
        )
    if refusal.status in (404, 405):
        model = body["model"]
        if models and model not in models:
            return ModelError(f"{base}: has no model {model!r}", f"it has: {', '.join(models[:8])}")
        return ModelError(
            f"{base}/{path}: {refusal.status} for the model {model!r} ({text})",
            "is the model's name right, and does the address end in /v1?",
        )
    if named := sorted(refused_fields(refusal.text, body)):
        values = ", ".join(f"{field} {body[field]}" for field in named if body[field] != NEUTRAL[field])
        return ModelError(f"{base}: refuses {values} ({text})", "set it to what changes nothing, or use vLLM")
    return DataError(f"{name_of(prompt)}: {base} refuses the request ({refusal.status}: {text})", "mend that")


def without_prompt(text: str, prompt: Prompt) -> str:
    """What a server says, without the prompt, which some repeat."""
    for content in (prompt.rendered, *(message.content for message in prompt.messages)):
        if content and len(content) > 8:
            text = text.replace(content, "…").replace(repr(content)[1:-1], "…")
    return text


# --- How a prompt is put to an OpenAI-compatible server, and how its answer is read: pure, and ---


BOS = ("<|begin_of_text|>", "<s>", "<bos>")
"""What begins a text in the models that have such a token. Servers add it to the text of a completion themselves."""
CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum (model|context) length|exceed_context_size|max_model_len"
    r"|(prompt|input|request) is too (long|large)|longer than the model",
    re.IGNORECASE,
)
"""How servers say that a prompt does not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """What a server is known to understand.

    Attributes:
        penalty: The field for the repetition penalty.
        limit: The field for the most new tokens.
        config: Whether sampling goes into one `generation_config`, as `transformers serve` has it.
        system: Whether the chat template has a system role.
        left_out: Fields that the server does not know and that would change nothing.
    """

    penalty: Literal["repetition_penalty", "repeat_penalty"] = "repetition_penalty"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    config: bool = False
    system: bool = True
    left_out: frozenset[str] = frozenset()


def request(
    prompt: Prompt, sample: int, params: SamplingParams, *, model: str, system: str | None, dialect: Dialect
) -> tuple[str, dict[str, Any]]:
    """What to send for one answer.

    Returns:
        The path under the server's base, and the JSON body: a chat, or a plain completion where `prompt.rendered`
        says the whole text.
    """
    body: dict[str, Any] = {"model": model}
    if prompt.rendered is not None:
        path = "completions"
        body["prompt"] = without_bos(prompt.rendered)
    else:
        path = "chat/completions"
        messages = list(with_system(prompt, system))
        if messages[0].role == "system" and not dialect.system:
            messages = fold_system(messages)
        body["messages"] = [{"role": m.role, "content": m.content} for m in messages]
        if "chat_template_kwargs" not in dialect.left_out:
            body["chat_template_kwargs"] = dict(PINNED)
    limit = dialect.limit if path == "chat/completions" else "max_tokens"
    body |= {limit: params.max_tokens, "temperature": params.temperature}
    if params.temperature:
        body |= {"top_p": params.top_p, "seed": response_seed(params.seed, sample_key(prompt.id, sample))}
    return path, body | sampling(params, dialect)


def sampling(params: SamplingParams, dialect: Dialect) -> dict[str, Any]:
    """The fields that OpenAI's API does not have."""
    if dialect.config:
        config: dict[str, Any] = {"do_sample": params.temperature > 0}
        config["repetition_penalty"] = params.repetition_penalty
        if params.temperature:
            config |= {"top_k": params.top_k, "min_p": 0.0}
        return {"generation_config": json.dumps(config)}
    fields: dict[str, Any] = {dialect.penalty: params.repetition_penalty}
    if dialect.penalty == "repeat_penalty":
        fields["repeat_last_n"] = -1
    if params.temperature:
        fields |= {"top_k": params.top_k or -1, "min_p": 0.0}
    return {name: value for name, value in fields.items() if name not in dialect.left_out}


NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": -1,
    "top_k": -1,
    "min_p": 0.0,
    "chat_template_kwargs": PINNED,
}
"""Fields outside OpenAI's API, with the values that a server which does not know them can do without."""


def without_bos(text: str) -> str:
    """A text without the tokens that begin it: the server adds one itself, and two would be one too many."""
    while found := next((bos for bos in BOS if text.startswith(bos)), ""):
        text = text.removeprefix(found)
    return text


def adapted(dialect: Dialect, refusal: str, body: Mapping[str, Any]) -> Dialect | None:
    """The dialect to try next, after the server refused a body; `None` where no other would help.

    Args:
        dialect: The one that the body was written in.
        refusal: What the server says.
        body: What was sent.
    """
    if CONTEXT.search(refusal):
        return None
    if "Unexpected fields in the request" in refusal and not dialect.config:
        return dataclasses.replace(dialect, config=True)
    if "max_completion_tokens" in refusal and "max_tokens" in body and "messages" in body:
        return dataclasses.replace(dialect, limit="max_completion_tokens")
    if re.search(r"system role", refusal, re.IGNORECASE) and dialect.system and "messages" in body:
        return dataclasses.replace(dialect, system=False)
    named = refused_fields(refusal, body)
    if named and all(body[name] == NEUTRAL[name] for name in named):
        return dataclasses.replace(dialect, left_out=dialect.left_out | named)
    return None


def refused_fields(refusal: str, body: Mapping[str, Any]) -> frozenset[str]:
    """Those of the fields outside OpenAI's API that a refusal names."""
    return frozenset(name for name in NEUTRAL if name in body and re.search(rf"\b{name}\b", refusal))


def read_answer(data: Any, prompt_id: str, sample: int) -> Completion:
    """A completion from a server's JSON. Anything but `length` that ended it counts as a stop, with what text came.

    Tokens that the server does not count are 0.

    Raises:
        Passing: It is not the JSON of an answer.
    """
    try:
        choice = data["choices"][0]
        message = choice.get("message", choice)
        text = choice["text"] if message is choice else message.get("content")
        # OpenAI's models put a refusal into a field of its own.
        text = text or message.get("refusal") or ""
        tokens = (data.get("usage") or {}).get("completion_tokens") or 0
        if not isinstance(text, str) or not isinstance(tokens, int):
            raise TypeError
        finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    except (LookupError, TypeError, AttributeError):
        raise Passing("answers in a form that is not OpenAI's") from None
    return Completion(prompt_id=prompt_id, text=text, tokens=tokens, finish=finish, sample=sample)


DIALECTS = 6
"""Most ways in which one request is put to a server."""


class OpenAIEngine:
    """A model behind an OpenAI-compatible server.

    The server renders chats by its model's own chat template; texts that are rendered already (a judge's) go as they
    are, less a BOS token, which servers add themselves. Each answer is its own request, with its own seed, so that
    neither order nor concurrency matter, as far as the server keeps requests apart. The key is read from the
    environment for each request and is kept, recorded and shown nowhere.

    Args:
        base_url: Such as `http://localhost:8000/v1`.
        model: The model's name at the server; `None` where the server has only one.
        system: System prompt for prompts that bring none.
        key_env: The environment variable that holds the key, if the server wants one.
        concurrency: Requests at once.
        requests_per_minute: Most requests a minute, those repeated counted.
        retries: Tries after the first, where the server is busy, errs, or answers nonsense.
        timeout: Seconds without a byte after which a request is given up and tried again.
        patience: Seconds to wait for a server that has answered before and is gone.
        extra_body: Fields for every request, whatever the server knows; they win over the engine's own.
        clock: Whose time it is.

    Raises:
        RecipeError: The address is none, or holds credentials.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        system: str | None = DEFAULT_SYSTEM,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        retries: int = 6,
        timeout: float = 600.0,
        patience: float = 600.0,
        extra_body: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.server = open_server(base_url, key_env, timeout)
        self.system = system
        self.concurrency = concurrency
        self.extra_body = dict(extra_body or {})
        clock = clock or Clock()
        self._asked_for = model
        self._persistence = Persistence(retries, patience, Gate(requests_per_minute, clock), clock)
        self._adapted: Dialect | None = None
        self._one_at_a_time = threading.Lock()
        self._system_answered = False

    @functools.cached_property
    def served(self) -> tuple[str, str | None, tuple[str, ...]]:
        """The model's name at the server, who the server says owns it (often its own name), and all that it lists.

        Raises:
            ModelError: The server is not there, or lists several models and none was named.
        """

        def listing() -> Any:
            try:
                return self.server.ask("models")
            except Refused:
                return None
            except Passing as trouble:
                if trouble.down:
                    raise
                return None  # a list is good to have; what is wrong, the first request will show

        try:
            data = self._persistence.ask(listing, threading.Event())
        except Passing as trouble:
            raise self._lost(trouble) from None
        entries = data.get("data") if isinstance(data, dict) else None
        rows = [row for row in entries or () if isinstance(row, dict)] if isinstance(entries, list) else []
        owners = {str(row.get("id")): row.get("owned_by") for row in rows}
        model = self._asked_for or (next(iter(owners)) if len(owners) == 1 else None)
        if model is None:
            has = f"it has: {', '.join(sorted(owners)[:8])}" if owners else "it lists none"
            raise ModelError(f"{self.server.base}: which model?", f"name it; {has}")
        return model, owners.get(model), tuple(owners)

    @property
    def dialect(self) -> Dialect:
        """What the server is known to understand."""
        if self._adapted is None:
            owner = self.served[1]
            self._adapted = Dialect(penalty="repeat_penalty") if owner == "llamacpp" else Dialect()
        return self._adapted

    @property
    def about(self) -> Mapping[str, Any]:
        """As `Engine.about`."""
        model, owner, _ = self.served
        extra = {"extra_body": self.extra_body} if self.extra_body else {}
        return {
            "engine": "openai",
            "base_url": self.server.base,
            "model": model,
            "server": owner,
            "system": self.system,
            **extra,
        }

    def complete(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, done: Collection[str] = ()
    ) -> Iterator[list[Completion]]:
        """As `Engine.complete`; a batch is one answer, and they come in the order in which they are made.

        Longest prompts are asked first, so that one that does not fit is met early. Where a prompt fails, those
        under way are still answered, and then the error is raised.

        Raises:
            DataError: A prompt does not fit the model's context, or the server refuses it.
            ModelError: The server is not there, went away for too long, or does not know the model or a setting.
        """
        check_prompts(prompts)
        known = frozenset(done)
        asked = [(prompts[i], n) for i, n in sample_indices(prompts, params)]
        asked = [(prompt, sample) for prompt, sample in asked if sample_key(prompt.id, sample) not in known]
        asked.sort(key=lambda pair: -_length(pair[0]))
        if not asked:
            return
        _ = self.dialect  # met in this thread, once

        def answer(pair: tuple[Prompt, int], stop: threading.Event) -> Completion:
            return self._answer(pair[0], pair[1], params, stop)

        for completion in in_parallel(answer, asked, self.concurrency):
            yield [completion]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """Not to be had: servers do not agree on how to give the probabilities of a text that they did not write.

        Raises:
            DataError: Always.
        """
        raise DataError("response_loss cannot be measured through a server", "use the engine transformers or vllm")

    def _answer(self, prompt: Prompt, sample: int, params: SamplingParams, stop: threading.Event) -> Completion:
        for _ in range(DIALECTS):
            dialect = self.dialect
            path, body = request(prompt, sample, params, model=self.served[0], system=self.system, dialect=dialect)
            body |= self.extra_body
            # `transformers serve` has one generator for all requests: a seed holds only for one at a time.
            alone = self._one_at_a_time if dialect.config and params.temperature else contextlib.nullcontext()
            try:
                with alone:
                    data = self._persistence.ask(functools.partial(self._asked, path, body, stop), stop)
                return read_answer(data, prompt.id, sample)
            except Passing as trouble:
                raise self._lost(trouble, f" at {name_of(prompt)}") from None
            except Refused as refusal:
                following = adapted(dialect, refusal.text, body)
                if following is None:
                    raise explained(refusal, prompt, body, path, self.server.base, self.served[2]) from None
                self._adapted = following
        raise ModelError(f"{self.server.base}: refuses every form of the request", "is it an OpenAI-compatible server?")

    def _asked(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> Any:
        led = "messages" in body and body["messages"][0]["role"] == "system"
        try:
            data = self.server.ask(path, body)
            read_answer(data, "", 0)  # an answer in no known form may be a passing trouble too
        except Passing as trouble:
            if trouble.status != 500 or not led or self._system_answered or not self._stumbles(path, body, stop):
                raise
            raise Refused(500, "system role not supported") from None
        self._system_answered = self._system_answered or led
        return data

    def _stumbles(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> bool:
        """Whether a short chat goes well, and with a system message fails: some servers then only answer 500."""
        user = {"role": "user", "content": "Hi"}
        for messages, system in ([user], False), ([{"role": "system", "content": "Hi"}, user], True):
            self._persistence.gate.enter(stop)
            try:
                read_answer(self.server.ask(path, {**body, "messages": messages}), "", 0)
            except (Passing, Refused) as trouble:
                return system and getattr(trouble, "status", None) == 500
        self._system_answered = True
        return False

    def _lost(self, trouble: Passing, where: str = "") -> ModelError:
        hint = "run the same again to go on" if self._persistence.met else "is it running, and the address right?"
        return ModelError(f"{self.server.base}: {trouble}{where}", hint)


def _length(prompt: Prompt) -> int:
    return sum(len(m.content) for m in prompt.messages) if prompt.rendered is None else len(prompt.rendered)
