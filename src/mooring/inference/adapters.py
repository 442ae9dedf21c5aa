"""Adapters on servers: how vLLM, SGLang and llama.cpp load one, select it, and say that they do not have it.

vLLM loads an adapter from a folder by `/v1/load_lora_adapter` and takes its name as the model; SGLang loads it by
`/load_lora_adapter` and takes `base:adapter`. llama.cpp has the adapters that it was started with, and takes the scale
of each with every request.
"""

import contextlib
import dataclasses
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mooring.errors import ModelError
from mooring.inference.server import Server, ServerError, TransientError, shorten
from mooring.inference.servers import Servers
from mooring.models import ADAPTER_CONFIG, read_json

Kind = Literal["vllm", "sglang", "llamacpp"]
_LOAD: Mapping[str, str] = {"vllm": "load_lora_adapter", "sglang": "/load_lora_adapter"}
_UNLOAD: Mapping[str, str] = {"vllm": "unload_lora_adapter", "sglang": "/unload_lora_adapter"}
_ALREADY = re.compile(r"already (been )?(loaded|exists)", re.IGNORECASE)
_UNREADABLE = re.compile(r"no adapter found|no such file|repo id must be|is not a local folder", re.IGNORECASE)
_DISABLED = re.compile(r"lora is not enabled|enable[-_]lora", re.IGNORECASE)
HOW = (
    "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang with --enable-lora, or llama.cpp "
    "with --lora; or use the engine transformers or vllm"
)


class AdapterServers:
    """Servers of one base that answer with adapters on it; what each has loaded is remembered until it fails.

    Args:
        servers: The servers.
        base: The base's name on the servers, or None if it is the only one there; an adapter is not counted.
        known_as: Names and folders of the base: of several models, the one with such a name or root is taken.
    """

    def __init__(self, servers: Servers, base: str | None = None, known_as: tuple[str, ...] = ()) -> None:
        self.servers, self.named, self.known_as = servers, base, known_as
        self._cards: dict[Server, Mapping[str, Any]] = {}
        self._first: dict[Server, tuple[Any, Any]] = {}
        self._loaded: dict[Server, set[str]] = {server: set() for server in servers.all}
        self._scaled: dict[Server, list[Mapping[str, Any]]] = {}
        self._locks = {server: threading.RLock() for server in servers.all}

    def card(self, server: Server) -> Mapping[str, Any]:
        """What a server says about its base.

        Raises:
            TransientError: The server does not respond.
            ModelError: It does not list its models, lists several of which none is known to be the base, or had another
                model before.
        """
        with self._locks[server]:
            if server not in self._cards:
                card = self._find_base(server)
                now = card["id"], card.get("root")
                first = self._first.setdefault(server, now)
                if now != first:
                    what = f"{server.base}: serves {now[1] or now[0]} now, and before {first[1] or first[0]}"
                    raise ModelError(what, "start it with the same model", code="model.server_changed")
                self._cards[server] = card
            return self._cards[server]

    def name(self, server: Server) -> str:
        """The base's name on a server; errors as in `card`."""
        return str(self.card(server)["id"])

    def kind(self, server: Server) -> Kind:
        """The program that a server runs; errors as in `card`.

        Raises:
            ModelError: It is not known to load adapters.
        """
        owner = self.card(server).get("owned_by")
        if owner not in ("vllm", "sglang", "llamacpp"):
            what = f"{server.base}: is neither vLLM, SGLang nor llama.cpp (it says {str(owner)[:40]!r})"
            raise ModelError(what, HOW, code="model.server_without_adapters")
        return owner  # type: ignore[no-any-return]

    def check(self, server: Server) -> None:
        """Check that a server loads adapters, without loading one.

        Raises:
            TransientError: The server does not respond.
            ModelError: It loads none.
        """
        kind = self.kind(server)
        if kind == "llamacpp":
            self.scaled(server, "")
            return
        try:
            server.request(_LOAD[kind], {"lora_name": "", "lora_path": ""}, plain=True)
        except ServerError as error:
            if error.status in (404, 405) or _DISABLED.search(error.text):
                raise _without_adapters(server, error.text) from None
        except TransientError as error:
            if error.down:
                raise

    def load(self, server: Server, name: str, folder: Path) -> None:
        """Load an adapter, if the server is not known to have it.

        Raises:
            TransientError: The server may be able to later.
            ModelError: It loads no adapters, cannot read the folder, or cannot apply this adapter.
        """
        with self._locks[server]:
            if name in self._loaded[server]:
                return
            body = {"lora_name": name, "lora_path": str(folder.resolve())}
            try:
                server.request(_LOAD[self.kind(server)], body, plain=True)
            except ServerError as error:
                if not _ALREADY.search(error.text):
                    raise _not_loaded(server, folder, error.status, error.text) from None
            except TransientError as error:
                if error.status != 500:
                    raise
                raise _not_loaded(server, folder, 500, str(error)) from None  # vLLM: the adapter does not fit
            self._loaded[server].add(name)

    def scaled(self, server: Server, tuned: str) -> tuple[int, list[int]]:
        """The id of the adapter that llama.cpp was started with, and of all; of several, that of a file named `tuned`.

        Raises:
            TransientError: The server does not respond.
            ModelError: It was started with no adapter, or with several of which none has this name.
        """
        with self._locks[server]:
            if server not in self._scaled:
                try:
                    found = server.request("/lora-adapters")
                except ServerError as error:
                    raise _without_adapters(server, error.text) from None
                known = found if isinstance(found, list) else []
                self._scaled[server] = [each for each in known if isinstance(each, dict) and "id" in each]
            known = self._scaled[server]
        ids = [int(each["id"]) for each in known]
        if not ids:
            raise _without_adapters(server, "it was started with none")
        named = [int(each["id"]) for each in known if Path(str(each.get("path"))).stem == tuned]
        if len(ids) > 1 and len(named) != 1 and tuned:
            hint = f"start it with the tuned one alone, or name its file {tuned}.gguf"
            raise ModelError(f"{server.base}: has {len(ids)} adapters", hint, code="model.server_adapters")
        return (named or ids)[0], ids

    def forget(self, server: Server, name: str | None = None) -> None:
        """Do not rely on what a server had: it may have been restarted since."""
        with self._locks[server]:
            self._cards.pop(server, None)
            self._scaled.pop(server, None)
            if name is None:
                self._loaded[server].clear()
            else:
                self._loaded[server].discard(name)

    def unload(self) -> None:
        """Unload every adapter that was loaded; a server that does not respond is left alone."""
        for server, names in self._loaded.items():
            for name in sorted(names):
                with contextlib.suppress(TransientError, ServerError, ModelError):
                    server.request(_UNLOAD[self.kind(server)], {"lora_name": name}, plain=True)
            names.clear()

    def _find_base(self, server: Server) -> Mapping[str, Any]:
        try:
            data = server.request("models")
        except ServerError as error:
            what = f"{server.base}: does not list its models ({error.status})"
            raise ModelError(what, "does the address end in /v1?", code="model.server_path") from None
        entries = data.get("data") if isinstance(data, dict) else None
        cards = [each for each in entries or [] if isinstance(each, dict) and each.get("id")]
        bases = [each for each in cards if not each.get("parent")]
        named = [each for each in bases if each["id"] == self.named]
        if self.named is None:
            known = [each for each in bases if {each["id"], each.get("root")} & set(self.known_as)]
            named = known if len(bases) > 1 else bases
        if len(named) == 1:
            return named[0]
        there = ", ".join(str(each["id"]) for each in bases[:8]) or "no model"
        if self.named is not None:
            raise ModelError(
                f"{server.base}: has no model {self.named!r}", f"it has: {there}", code="model.not_on_server"
            )
        hint = f"name it as generate.served_model; the server has: {there}"
        raise ModelError(f"{server.base}: which model is the base?", hint, code="model.not_named")


@dataclasses.dataclass(frozen=True, slots=True)
class ServedBase:
    """The base itself. Implements `ServedModel`."""

    at: AdapterServers

    @property
    def about(self) -> Mapping[str, Any]:
        """See `ServedModel.about`."""
        return {}

    def fields(self, server: Server) -> Mapping[str, Any]:
        """See `ServedModel.fields`."""
        return {"model": self.at.name(server)}

    def is_missing(self, error: ServerError) -> bool:
        """See `ServedModel.is_missing`."""
        return error.status == 404

    def forget(self, server: Server) -> None:
        """See `ServedModel.forget`."""
        self.at.forget(server)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that servers load from a folder. Implements `ServedModel`.

    Attributes:
        name: Its name on the servers: one that no other adapter has.
        folder: Its folder, which the servers must be able to read.
        at: The servers.
    """

    name: str
    folder: Path
    at: AdapterServers

    @property
    def about(self) -> Mapping[str, Any]:
        """See `ServedModel.about`."""
        return {"adapter": self.name}

    def fields(self, server: Server) -> Mapping[str, Any]:
        """See `ServedModel.fields`."""
        self.at.load(server, self.name, self.folder)
        if self.at.kind(server) == "sglang":  # earlier versions take `lora_path`, later ones the model's name
            return {"model": f"{self.at.name(server)}:{self.name}", "lora_path": self.name}
        return {"model": self.name}

    def is_missing(self, error: ServerError) -> bool:
        """See `ServedModel.is_missing`."""
        return error.status == 404 or (self.name in error.text and "not loaded" in error.text)

    def forget(self, server: Server) -> None:
        """See `ServedModel.forget`."""
        self.at.forget(server, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class ScaledAdapter:
    """The adapter that llama.cpp was started with, at a scale: 0 is the base. Implements `ServedModel`.

    Attributes:
        scale: What the adapter's change is multiplied by.
        tuned: The name of its file without suffix, which decides if there are several.
        at: The servers.
    """

    scale: float
    tuned: str
    at: AdapterServers

    @property
    def about(self) -> Mapping[str, Any]:
        """See `ServedModel.about`."""
        return {"adapter_scale": self.scale}

    def fields(self, server: Server) -> Mapping[str, Any]:
        """See `ServedModel.fields`."""
        own, ids = self.at.scaled(server, self.tuned)
        return {"lora": [{"id": each, "scale": self.scale if each == own else 0.0} for each in ids]}

    def is_missing(self, error: ServerError) -> bool:
        """See `ServedModel.is_missing`."""
        return "invalid adapter id" in error.text

    def forget(self, server: Server) -> None:
        """See `ServedModel.forget`."""
        self.at.forget(server)


def _without_adapters(server: Server, text: str) -> ModelError:
    what = f"{server.base}: loads no adapters ({shorten(text)})"
    return ModelError(what, HOW, code="model.server_without_adapters")


def _not_loaded(server: Server, folder: Path, status: int, text: str) -> ModelError:
    """Why a server did not load an adapter."""
    if _UNREADABLE.search(text):
        hint = "run the server on this machine, or mount the run folder there under the same path"
        what = f"{server.base}: cannot read {folder.resolve()}"
        return ModelError(what, hint, code="model.adapter_unreadable")
    if status in (404, 405) or _DISABLED.search(text):
        return _without_adapters(server, text)
    rank = read_json(folder / ADAPTER_CONFIG).get("r")
    hint = f"has the server room for its rank ({rank}: --max-lora-rank) and its modules? Or use the engine transformers"
    return ModelError(f"{server.base}: cannot load the adapter ({shorten(text)})", hint, code="model.adapter_rejected")
