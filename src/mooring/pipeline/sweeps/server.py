"""A sweep on servers that load adapters: every λ is an adapter on the base that they serve."""

import hashlib
import threading
from pathlib import Path

from mooring.config import Generate
from mooring.errors import RecipeError, UserError
from mooring.inference.adapters import AdapterServers, LoadedAdapter, ScaledAdapter, ServedBase
from mooring.inference.engine import Engine
from mooring.inference.load import servers_of
from mooring.inference.openai import OpenAIEngine, ServedModel, unavailable
from mooring.inference.server import TransientError
from mooring.merge_point import MergePoint
from mooring.merging.adapter import LEAVE_OUT
from mooring.models import ADAPTER_CONFIG, is_adapter
from mooring.models.lora import ADAPTER_WEIGHTS
from mooring.pipeline.run_folder import remove
from mooring.pipeline.sweeps.sweep import SweepSpec

WAY_OUT = "use the engine transformers or vllm"


class ServerSweep:
    """A sweep on servers of the base. Implements `Sweep`.

    The adapter of each λ is written to `scratch`, from which the servers load it; its name is a digest of its content,
    so that servers never mix up two of them. llama.cpp gets λ as the scale of the adapter that it was started with.
    """

    concurrent = True
    stays_loaded = True

    def __init__(self, spec: SweepSpec, scratch: Path) -> None:
        check_tuned(spec.pair.tuned[0].folder)
        self._spec, self._scratch = spec, scratch
        self._servers = servers_of(spec.runner)
        named = spec.runner.served_model if isinstance(spec.runner, Generate) else None
        self._adapters = AdapterServers(self._servers, named, (str(spec.pair.base.folder),))
        self._written: dict[MergePoint, LoadedAdapter] = {}
        self._lock = threading.Lock()

    def at(self, point: MergePoint) -> Engine:
        """See `Sweep.at`."""
        try:
            kind, name = self._servers.call(
                lambda server: (self._adapters.kind(server), self._adapters.name(server)), threading.Event()
            )
        except TransientError as error:
            raise unavailable(self._servers, error) from None
        return OpenAIEngine(self._servers, name, system=self._spec.system, served=self._select(point, kind))

    def close(self) -> None:
        """See `Sweep.close`. The servers unload what they loaded."""
        self._adapters.unload()
        self._written.clear()
        remove(self._scratch)

    def _select(self, point: MergePoint, kind: str) -> ServedModel:
        if kind == "llamacpp":
            if point.by_module:
                what = f"{self._servers.base}: llama.cpp has one scale for a whole adapter, and no λ by module"
                raise RecipeError(what, f"use vLLM or SGLang, or {WAY_OUT}", code="recipe.server_lam_by_module")
            return ScaledAdapter(point.lam, self._spec.pair.tuned[0].folder.name, self._adapters)
        if point.is_base:
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


def check_tuned(tuned: Path) -> None:
    """Check that servers can change λ of a tuned model: that it is a LoRA adapter.

    Raises:
        RecipeError: It is a whole checkpoint (`recipe.server_needs_adapter`).
    """
    if not is_adapter(tuned):
        what = f"{tuned}: is a whole checkpoint, and a server changes λ of a LoRA adapter only"
        raise RecipeError(what, WAY_OUT, code="recipe.server_needs_adapter")
