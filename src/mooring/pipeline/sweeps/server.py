"""A sweep on servers that load adapters: every λ is an adapter on the base that they serve."""

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

from mooring.config import Generate
from mooring.errors import ModelError, RecipeError, UserError
from mooring.events import Event
from mooring.inference.adapters import AdapterServers, LoadedAdapter, ScaledAdapter, ServedBase
from mooring.inference.engine import Engine
from mooring.inference.load import servers_of
from mooring.inference.openai import OpenAIEngine, ServedModel, unavailable
from mooring.inference.probe import check_settings, check_tokenizer, differing_settings
from mooring.inference.retry import RequestLimits
from mooring.inference.server import Server, TransientError
from mooring.inference.servers import Servers
from mooring.merge_point import MergePoint
from mooring.merging.adapter import LEAVE_OUT
from mooring.merging.pair import have_other_weights
from mooring.models import ADAPTER_CONFIG, Checkpoint, is_adapter, open_checkpoint, read_json
from mooring.models.adapter_config import beyond_plain
from mooring.models.lora import ADAPTER_WEIGHTS
from mooring.pipeline.run_folder import remove
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.quiet import quiet

WAY_OUT = "use the engine transformers or vllm"


class ServerSweep:
    """A sweep on servers of the base. Implements `Sweep`.

    The adapter of each λ is written to `scratch`, from which the servers load it; its name is a digest of its content,
    so that servers never mix up two of them. llama.cpp gets λ as the scale of the adapter that it was started with.
    """

    concurrent = True
    stays_loaded = True

    def __init__(self, spec: SweepSpec, scratch: Path) -> None:
        for each in spec.all:
            check_tuned(each.pair.tuned[0].folder)
        self._spec, self._scratch = spec, scratch
        self._servers = servers_of(spec.runner)
        named = spec.runner.served_model if isinstance(spec.runner, Generate) else None
        self._adapters = AdapterServers(self._servers, named, (str(spec.pair.base.folder),))
        self._written: dict[MergePoint, LoadedAdapter] = {}
        self._lock = threading.Lock()
        self._checked = False

    def at(self, point: MergePoint) -> Engine:
        """See `Sweep.at`. Checks the servers once.

        Raises:
            ModelError: A server serves another model than the base, loads no adapters, or ignores a setting.
        """
        with self._lock:
            if not self._checked:
                for server in self._servers.all:
                    self._check(server)
                self._checked = True
        try:
            kind, name = self._servers.call(
                lambda server: (self._adapters.kind(server), self._adapters.name(server)), threading.Event()
            )
        except TransientError as error:
            raise unavailable(self._servers, error) from None
        system, thinking = self._spec.system, self._spec.runner.thinking
        served, tokenizer = self._select(point, kind), self._base_tokenizer
        return OpenAIEngine(self._servers, name, system=system, served=served, thinking=thinking, tokenizer=tokenizer)

    @functools.cached_property
    def _base_tokenizer(self) -> Any:
        return _tokenizer(self._spec.pair.base.folder)

    def close(self) -> None:
        """See `Sweep.close`. The servers unload what they loaded."""
        self._adapters.unload()
        self._written.clear()
        remove(self._scratch)

    def _check(self, server: Server) -> None:
        """Check one server before the first prompt: its model, its adapters, and whether it follows settings."""
        alone = Servers([server.base], self._spec.runner.key_env, self._servers.retrier.limits)
        adapters = AdapterServers(alone, self._adapters.named, self._adapters.known_as)
        (here,) = alone.all
        try:
            alone.call(adapters.check, threading.Event())
            card = alone.call(adapters.card, threading.Event())
        except TransientError as error:
            raise unavailable(alone, error) from None
        base = self._spec.pair.base
        check_same_model(here.base, str(card.get("root") or card["id"]), base)
        engine = OpenAIEngine(alone, str(card["id"]), system=self._spec.system)
        if (tokenizer := self._base_tokenizer) is not None:
            check_tokenizer(engine, lambda text: len(tokenizer(text)["input_ids"]))
        if isinstance(self._spec.runner, Generate):
            used = [self._spec.runner.sampling(kind, 0) for kind in ("safety", "task")]
            check_settings(engine, used)
            for sentence in differing_settings(engine, used):
                self._spec.on_event(Event(step="server", kind="info", message=sentence))

    def _select(self, point: MergePoint, kind: str) -> ServedModel:
        if kind == "llamacpp":
            if point.by_module:
                what = f"{self._servers.base}: llama.cpp has one scale for a whole adapter, and no λ by module"
                raise RecipeError(what, f"use vLLM or SGLang, or {WAY_OUT}", code="recipe.server_lam_by_module")
            return ScaledAdapter(point.lam, self._spec.at(point).pair.tuned[0].folder.name, self._adapters)
        if point.is_base and kind != "vllm":  # which may mix it up with an adapter: see `sweeps/vllm.py`
            return ServedBase(self._adapters)
        with self._lock:
            if point not in self._written:
                self._written[point] = self._write(point)
            return self._written[point]

    def _write(self, point: MergePoint) -> LoadedAdapter:
        folder = self._scratch / point.folder
        remove(folder)
        try:
            self._spec.write_adapter(point, folder)
        except UserError as error:
            if error.hint != LEAVE_OUT:
                raise
            raise RecipeError(error.message, WAY_OUT, code="recipe.server_needs_adapter") from None
        content = hashlib.sha256()
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            content.update((folder / file).read_bytes())
        name = f"mooring-{point.folder}-{content.hexdigest()[:12]}"
        if not (self._scratch / name).is_dir():  # of a run that was killed
            folder.rename(self._scratch / name)
        return LoadedAdapter(name, self._scratch / name, self._adapters)


def check_server(runner: Generate, *, patient: bool) -> None:
    """Check that servers respond, have one model to take as the base, and load adapters.

    Args:
        runner: The servers and their limits.
        patient: Whether to wait a little for a server that does not respond.

    Raises:
        ModelError: One does not, or has several models of which none is named as the base.
    """
    servers = servers_of(runner)
    limits = servers.retrier.limits if patient else RequestLimits(retries=0, timeout=5, patience=0)
    for server in servers.all:
        alone = Servers([server.base], runner.key_env, limits)
        try:
            alone.call(AdapterServers(alone, runner.served_model).check, threading.Event())
        except TransientError as error:
            raise unavailable(alone, error) from None


def check_same_model(where: str, served: str, base: Checkpoint) -> None:
    """Check that a server's model is the base, as far as its name tells: a folder on this machine, or a hub id.

    Args:
        where: The server's address.
        served: The folder or hub id that it names.
        base: The base.

    Raises:
        ModelError: It is another model (`model.server_other_model`).
    """
    different = False
    if Path(served).is_dir():
        if Path(served).resolve() != base.folder.resolve():
            with open_checkpoint(Path(served)) as other:
                different = have_other_weights(base, other)
    elif ours := _hub_id(base.folder):
        different = "/" in served and not served.startswith(("/", ".")) and served.lower() != ours.lower()
    if different:
        what = f"{where}: serves {served}, and the base of the run is {_hub_id(base.folder) or base.folder}"
        raise ModelError(what, "serve the base, or name what is served as the base", code="model.server_other_model")


def _hub_id(folder: Path) -> str:
    """The hub id of a folder in the hub's cache; empty for any other."""
    found = next((part for part in folder.parts if part.startswith("models--")), "")
    return found.removeprefix("models--").replace("--", "/", 1)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a model; None if it has none that can be loaded."""
    import transformers

    try:
        with quiet("transformers"):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # loaders raise errors of any type
        return None


_NOT_SERVED = ("target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora")
"""Options of adapters that no server applies."""


def check_tuned(tuned: Path) -> None:
    """Check that servers can change λ of a tuned model: that it is a LoRA adapter of a kind that they apply.

    Raises:
        RecipeError: It is a whole checkpoint, or an adapter that servers do not apply (`recipe.server_needs_adapter`).
    """
    if not is_adapter(tuned):
        what = f"{tuned}: is a whole checkpoint, and a server changes λ of a LoRA adapter only"
        raise RecipeError(what, WAY_OUT, code="recipe.server_needs_adapter")
    if used := [name for name in beyond_plain(read_json(tuned / ADAPTER_CONFIG)) if name in _NOT_SERVED]:
        what = f"{tuned}: the adapter uses {', '.join(used)}, which servers do not apply"
        raise RecipeError(what, WAY_OUT, code="recipe.server_needs_adapter")
