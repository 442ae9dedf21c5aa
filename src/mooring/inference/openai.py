"""The engine on a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, `transformers serve`, or a paid one."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from mooring.chat import DEFAULT_SYSTEM, prefill_text
from mooring.errors import DataError, ModelError, UserError
from mooring.inference.cost import text_length
from mooring.inference.dialect import (
    CONTEXT,
    NEUTRAL,
    PREFILLING,
    Dialect,
    adapt,
    parse_completion,
    rejected_fields,
    request_body,
)
from mooring.inference.encode import name_of
from mooring.inference.engine import check_prompts, sample_indices
from mooring.inference.retry import Clock, RequestLimits, in_parallel
from mooring.inference.server import Server, ServerError, TransientError, shorten
from mooring.inference.servers import Servers
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams
from mooring.thinking import Thinking

ATTEMPTS = 6
"""Maximum number of dialects in which one request is tried."""


class ServedModel(Protocol):
    """What selects one of the models that servers have, such as an adapter, and makes it available there."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What its responses depend on, as plain JSON values."""
        ...

    def fields(self, server: Server) -> Mapping[str, Any]:
        """The fields of a request that select it; makes it available on this server first if it is not.

        Raises:
            TransientError: The server may be able to later.
            ModelError: The server cannot.
        """
        ...

    def is_missing(self, error: ServerError) -> bool:
        """Whether the server says that it does not have the model, such as after a restart."""
        ...

    def forget(self, server: Server) -> None:
        """Make it available again before the next request to this server."""
        ...


class OpenAIEngine:
    """A model behind an OpenAI-compatible server, or behind several.

    The server renders chats with the model's own chat template; rendered prompts (a judge's) are sent as text. Each
    response is a request of its own with its own seed, so that neither order nor concurrency matter, as far as the
    server keeps requests apart.

    Args:
        base_url: Such as `http://localhost:8000/v1`; or several, of servers with the same model; or servers that share
            their limits with other engines, in which case `key_env`, `limits` and `clock` are those of the servers.
        model: The model's name on the server; None if the server has only one.
        system: System prompt for prompts that have none.
        key_env: Name of the environment variable that holds the API key; the key itself is stored nowhere.
        limits: How many requests are made, and how long each is tried.
        extra_body: Fields for every request; they override the engine's own.
        clock: Replaced in tests.
        served: Selects the model in place of its name, such as an adapter.
        thinking: Whether the chat template asks the model to think; sent as `chat_template_kwargs`.
        tokenizer: The model's tokenizer, which counts the tokens of a prefill.

    Raises:
        RecipeError: `base_url` is not an address, or contains credentials.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | Servers,
        model: str | None = None,
        *,
        system: str | None = DEFAULT_SYSTEM,
        key_env: str = "OPENAI_API_KEY",
        limits: RequestLimits | None = None,
        extra_body: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        served: ServedModel | None = None,
        thinking: Thinking | None = None,
        tokenizer: Any = None,
    ) -> None:
        if not isinstance(base_url, Servers):
            urls = [base_url] if isinstance(base_url, str) else base_url
            base_url = Servers(urls, key_env, limits or RequestLimits(), clock)
        self.servers = base_url
        self.system, self.thinking, self._tokenizer = system, thinking, tokenizer
        self.extra_body = dict(extra_body or {})
        self._requested_model, self._served = model, served
        self._lookup = threading.Lock()
        self._found: tuple[str, str | None, tuple[str, ...]] | None = None
        self._dialect: Dialect | None = None
        self._one_at_a_time = threading.Lock()
        self._system_accepted = False

    @property
    def served(self) -> tuple[str, str | None, tuple[str, ...]]:
        """The model's name, its owner according to the server (often the server's own name), and all listed models.

        Raises:
            ModelError: The server is unreachable, or lists several models and none was requested.
        """
        # Not `cached_property`: in Python 3.11 one lock serves all objects, so that a dead server blocks the others.
        with self._lookup:
            if self._found is None:
                self._found = self._find_model()
            return self._found

    def _find_model(self) -> tuple[str, str | None, tuple[str, ...]]:
        """Ask the server for its models; see `served`."""

        def list_models(server: Server) -> Any:
            try:
                return server.request("models")
            except ServerError:
                return None
            except TransientError as error:
                if error.down:
                    raise
                return None  # the list is optional; the first completion shows what is wrong

        try:
            data = self.servers.call(list_models, threading.Event())
        except TransientError as error:
            raise unavailable(self.servers, error) from None
        entries = data.get("data") if isinstance(data, dict) else None
        models = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        owners = {str(entry.get("id")): entry.get("owned_by") for entry in models}
        model = self._requested_model or (next(iter(owners)) if len(owners) == 1 else None)
        if model is None:
            available = f"it has: {', '.join(sorted(owners)[:8])}" if owners else "it lists none"
            raise ModelError(f"{self.servers.base}: which model?", f"name it; {available}", code="model.not_named")
        return model, owners.get(model), tuple(owners)

    @property
    def about(self) -> Mapping[str, Any]:
        """See `Engine.about`."""
        model, owner, _ = self.served
        about: dict[str, Any] = {"engine": "openai", "base_url": self.servers.base, "model": model, "server": owner}
        about |= {"system": self.system} | ({"thinking": self.thinking} if self.thinking else {})
        about |= {"extra_body": self.extra_body} if self.extra_body else {}
        return about | (dict(self._served.about) if self._served else {})

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """See `Engine.complete`; a batch is one response, yielded when it arrives; drafts are ignored.

        The longest prompts are sent first, so that one that does not fit is found early. If a prompt fails, the
        responses in progress are still yielded, and then the error is raised.

        Raises:
            DataError: A prompt does not fit the model's context, or the server rejects it.
            ModelError: The server is unreachable, was down for too long, does not know the model or a setting, or
                cannot continue an answer that a prompt begins.
        """
        check_prompts(prompts)
        prompts = [self._cut(prompt) for prompt in prompts]
        samples = [(prompts[index], sample) for index, sample in sample_indices(prompts, params)]
        finished = frozenset(done)
        samples = [(prompt, sample) for prompt, sample in samples if sample_key(prompt.id, sample) not in finished]
        samples.sort(key=lambda pair: -text_length(pair[0], None))
        if not samples:
            return
        if self._dialect is None:
            self._dialect = Dialect(penalty="repeat_penalty" if self.served[1] == "llamacpp" else "repetition_penalty")

        def work(pair: tuple[Prompt, int], stop: threading.Event) -> Completion:
            return self._complete(pair[0], pair[1], params, stop)

        for completion in in_parallel(work, samples, self.servers.concurrency):
            yield [completion]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """Not supported: servers do not agree on an API for the log-probabilities of a given text.

        Raises:
            DataError: Always.
        """
        what, hint = "response_loss cannot be measured through a server", "use the engine transformers or vllm"
        raise DataError(what, hint, code="data.likelihood_unavailable")

    def _complete(self, prompt: Prompt, sample: int, params: SamplingParams, stop: threading.Event) -> Completion:
        for _ in range(ATTEMPTS):
            dialect = self._dialect
            assert dialect is not None
            path, body = request_body(
                prompt,
                sample,
                params,
                model=self.served[0],
                system=self.system,
                dialect=dialect,
                thinking=self.thinking,
            )
            body |= self.extra_body
            # `transformers serve` has one random generator for all requests: a seed needs it to itself.
            exclusive = dialect.generation_config and params.temperature
            try:
                with self._one_at_a_time if exclusive else contextlib.nullcontext():
                    data = self.servers.call(functools.partial(self._request, path, body, stop), stop)
                return dataclasses.replace(parse_completion(data, prompt.id, sample), prefill=prompt.prefill or "")
            except TransientError as error:
                raise unavailable(self.servers, error, f" at {name_of(prompt)}") from None
            except ServerError as error:
                adapted = adapt(dialect, error.text, body)
                if adapted is None:
                    raise self._explain(error, prompt, path, body) from None
                self._dialect = adapted
        what = f"{self.servers.base}: rejects every form of the request"
        raise ModelError(what, "is it an OpenAI-compatible server?", code="model.server_incompatible")

    def _cut(self, prompt: Prompt) -> Prompt:
        """A prompt with its prefill as it is sent: as many tokens as it may have."""
        if not prompt.prefill:
            return prompt
        owner = str(self.served[1])
        if owner not in PREFILLING:
            problem = f"{self.servers.base}: is not known to continue an answer (owner of its models: {owner})"
            hint = "leave out the attack `prefill`, or use vLLM, SGLang, or the engine transformers"
            raise ModelError(problem, hint, code="model.prefill_unsupported")
        if prompt.prefill_tokens is None:
            return prompt
        if self._tokenizer is None:
            problem = f"{self.servers.base}: the tokens of a prefill cannot be counted without the model's tokenizer"
            hint = "use it in a run, whose base is here, or the engine transformers or vllm"
            raise ModelError(problem, hint, code="model.prefill_without_tokenizer")
        return dataclasses.replace(prompt, prefill=prefill_text(self._tokenizer, prompt), prefill_tokens=None)

    def _request(self, path: str, body: Mapping[str, Any], stop: threading.Event, server: Server) -> Any:
        """Make one request; a template that fails on system messages becomes a `ServerError`."""
        has_system = "messages" in body and body["messages"][0]["role"] == "system"
        try:
            data = self._send(path, body, server)
        except TransientError as error:
            suspicious = error.status == 500 and has_system and not self._system_accepted
            if suspicious and self._system_fails(path, body, stop, server):
                raise ServerError(500, "system role not supported") from None
            raise
        self._system_accepted = self._system_accepted or has_system
        return data

    def _send(self, path: str, body: Mapping[str, Any], server: Server) -> Any:
        """Make one request, with the fields that select the model; one that the server lost is loaded again."""
        if self._served is None:
            return _checked(server, path, body)
        try:
            return _checked(server, path, {**body, **self._served.fields(server)})
        except TransientError:
            self._served.forget(server)  # the server may come back without it
            raise
        except ServerError as error:
            if not self._served.is_missing(error):
                raise
            self._served.forget(server)
            return _checked(server, path, {**body, **self._served.fields(server)})

    def _system_fails(self, path: str, body: Mapping[str, Any], stop: threading.Event, server: Server) -> bool:
        """Whether a short chat succeeds, and fails with a system message: some servers only respond with status 500."""
        user = {"role": "user", "content": "Hi"}
        for messages, has_system in ([user], False), ([{"role": "system", "content": "Hi"}, user], True):
            self.servers.retrier.rate.acquire(stop)
            try:
                self._send(path, {**body, "messages": messages}, server)
            except (TransientError, ServerError) as error:
                return has_system and error.status == 500
        self._system_accepted = True
        return False

    def _explain(self, error: ServerError, prompt: Prompt, path: str, body: Mapping[str, Any]) -> UserError:
        """A server error as a user error that names the fix and does not repeat the prompt."""
        base, model, models = error.base or self.servers.base, body["model"], self.served[2]
        text = shorten(_without_prompt(error.text, prompt))
        if CONTEXT.search(error.text) or error.status == 413:
            what = f"{name_of(prompt)}: does not fit the model's context ({text})"
            return DataError(what, "shorten it, or lower generate.max_tokens", code="data.context_exceeded")
        if error.status in (404, 405):
            if models and model not in models:
                available = f"it has: {', '.join(models[:8])}"
                return ModelError(f"{base}: has no model {model!r}", available, code="model.not_on_server")
            what = f"{base}/{path}: {error.status} for the model {model!r} ({text})"
            hint = "is the model's name right, and does the address end in /v1?"
            return ModelError(what, hint, code="model.server_path")
        if rejected := sorted(rejected_fields(error.text, body)):
            values = ", ".join(f"{field} {body[field]}" for field in rejected if body[field] != NEUTRAL[field])
            hint = "use the neutral value, or the engine vllm"
            return ModelError(f"{base}: rejects {values} ({text})", hint, code="model.sampling_unsupported")
        message = f"{name_of(prompt)}: {base} rejects the request ({error.status}: {text})"
        return DataError(message, "fix what the server names", code="data.request_rejected")


def unavailable(servers: Servers, error: TransientError, place: str = "") -> ModelError:
    """The error about servers that did not respond, or failed too often."""
    hint = (
        "run the same command again to resume"
        if servers.retrier.reached
        else "is it running, and is the address right?"
    )
    where = servers.base if error.down else error.base or servers.base
    return ModelError(f"{where}: {error}{place}", hint, code="model.server_unavailable")


def _checked(server: Server, path: str, body: Mapping[str, Any]) -> Any:
    """Make one request; a response in another format may be transient too."""
    data = server.request(path, body)
    try:
        parse_completion(data)
    except TransientError as error:
        error.base = server.base
        raise
    return data


def _without_prompt(text: str, prompt: Prompt) -> str:
    """A server's message without the prompt, which some servers repeat."""
    for content in (prompt.rendered, *(message.content for message in prompt.messages)):
        if content and len(content) > 8:
            text = text.replace(content, "…").replace(repr(content)[1:-1], "…")
    return text
