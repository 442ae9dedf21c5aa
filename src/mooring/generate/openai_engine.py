"""The engine on a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, `transformers serve`, or a paid one."""

import contextlib
import functools
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import DataError, ModelError
from mooring.generate.dialect import Dialect, adapted, read_answer, request
from mooring.generate.engine import Settings, check_prompts, each_sample
from mooring.generate.refusals import explained
from mooring.generate.retry import Clock, Gate, Passing, Persistence, in_parallel
from mooring.generate.rows import name
from mooring.generate.wire import Refused, open_server
from mooring.records import Completion, Likelihood, Prompt, sample_key

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
        self, prompts: Sequence[Prompt], settings: Settings, *, done: Collection[str] = ()
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
        asked = [(prompts[i], n) for i, n in each_sample(prompts, settings)]
        asked = [(prompt, sample) for prompt, sample in asked if sample_key(prompt.id, sample) not in known]
        asked.sort(key=lambda pair: -_length(pair[0]))
        if not asked:
            return
        _ = self.dialect  # met in this thread, once

        def answer(pair: tuple[Prompt, int], stop: threading.Event) -> Completion:
            return self._answer(pair[0], pair[1], settings, stop)

        for completion in in_parallel(answer, asked, self.concurrency):
            yield [completion]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """Not to be had: servers do not agree on how to give the probabilities of a text that they did not write.

        Raises:
            DataError: Always.
        """
        raise DataError("response_loss cannot be measured through a server", "use the engine transformers or vllm")

    def _answer(self, prompt: Prompt, sample: int, settings: Settings, stop: threading.Event) -> Completion:
        for _ in range(DIALECTS):
            dialect = self.dialect
            path, body = request(prompt, sample, settings, model=self.served[0], system=self.system, dialect=dialect)
            body |= self.extra_body
            # `transformers serve` has one generator for all requests: a seed holds only for one at a time.
            alone = self._one_at_a_time if dialect.config and settings.temperature else contextlib.nullcontext()
            try:
                with alone:
                    data = self._persistence.ask(functools.partial(self._asked, path, body, stop), stop)
                return read_answer(data, prompt.id, sample)
            except Passing as trouble:
                raise self._lost(trouble, f" at {name(prompt)}") from None
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
        mend = "run the same again to go on" if self._persistence.met else "is it running, and the address right?"
        return ModelError(f"{self.server.base}: {trouble}{where}", mend)


def _length(prompt: Prompt) -> int:
    return sum(len(m.content) for m in prompt.messages) if prompt.rendered is None else len(prompt.rendered)
