"""A sweep with one running vLLM engine for all points of the merge."""

import tempfile
from pathlib import Path
from typing import Any

from mooring.errors import ModelError, UserError
from mooring.events import Event
from mooring.inference.engine import Engine
from mooring.inference.folder import open_folder
from mooring.inference.vllm import VLLMEngine, lora_options, open_tokenizer
from mooring.inference.vllm_errors import starting
from mooring.inference.vllm_shared import LoraOptions, SharedLLM, VLLMOptions
from mooring.merge_point import BASE, MergePoint
from mooring.merging.adapter import METHODS
from mooring.merging.manifest import write_side_files
from mooring.models import Adapter, open_adapter, read_config
from mooring.models.classes import loading
from mooring.pipeline.run_folder import remove
from mooring.pipeline.sweeps.folders import FolderSweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.vllm_worker import MergeWorker

MAX_LORAS = 8
"""The most adapters in one batch."""

_IGNORED_FIELDS = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "eos_token_id",
    "pad_token_id",
)
"""Fields of a configuration that do not affect the model that vLLM builds."""


class VLLMSweep:
    """A sweep with one vLLM engine. Implements `Sweep`.

    Where each merge is an adapter (LoRA with a method of `merging.adapter.METHODS`), the engine holds the base, and the
    merges are adapters of it, used at the same time. Otherwise the weights of the running engine are replaced by the
    merge's. A model that the engine cannot hold, such as one with a configuration of its own, is opened from its folder
    after the engine has ended.
    """

    stays_loaded = True

    def __init__(self, spec: SweepSpec, scratch: Path) -> None:
        self._spec, self._scratch = spec, scratch
        self._options = VLLMOptions.of(spec.runner)
        self._folders = FolderSweep(spec, scratch / "models")
        self._adapters = all(
            each.method in METHODS and all(isinstance(model, Adapter) for model in each.pair.tuned) for each in spec.all
        )
        self.started = 0
        """How often vLLM was started."""
        self._shared: SharedLLM | None = None
        self._opened: dict[MergePoint, VLLMEngine] = {}
        self._tokenizers: dict[tuple[Path, ...], tuple[Any, frozenset[int]]] = {}
        self._lora_options: LoraOptions | None = None
        self._noted: set[str] = set()
        self._loaded: MergePoint | None = None

    @property
    def concurrent(self) -> bool:
        """See `Sweep.concurrent`."""
        return self._adapters

    def at(self, point: MergePoint) -> Engine:
        """See `Sweep.at`."""
        if self._needs_own_engine(point):
            self._note_once(f"{point.label}: its configuration is not the base's, so vLLM is restarted for it")
            self._end()
            return self._folders.at(point)
        self._folders.close()
        if self._adapters:
            try:
                return self._with_adapter(point)
            except _AdapterRefusedError as error:
                self._end()
                self._adapters = False
                reason = str(error.__cause__).strip().split("\n")[0]
                self._note_once(f"vLLM cannot apply the merges as adapters ({reason}): weights are replaced for each λ")
        return self._in_place(point)

    def close(self) -> None:
        """See `Sweep.close`."""
        self._end()
        self._folders.close()
        remove(self._scratch)

    def _note_once(self, message: str) -> None:
        """Report a slower way of working, at most once per message."""
        if message not in self._noted:
            self._noted.add(message)
            self._spec.on_event(Event(step="vllm", kind="info", message=message))

    # --- merges as adapters ---------------------------------------------------------------------------------------

    def _with_adapter(self, point: MergePoint) -> VLLMEngine:
        """The model as an adapter of the running engine. The base is an adapter too, with a scale of zero.

        On CPUs, vLLM 0.32 gives a request without an adapter the last one loaded, if there are others in its batch and
        all slots are taken: `vllm/lora/ops/torch_ops/lora_ops.py` indexes the slots with −1.
        """
        if point not in self._opened:
            folder = self._adapter(point)
            shared = self._start(self._lora())
            try:
                request = shared.adapter(folder)
            except Exception as error:  # vLLM raises errors of any type for what it cannot apply
                raise _AdapterRefusedError from error
            self._opened[point] = self._engine(point, shared, request)
        return self._opened[point]

    def _adapter(self, point: MergePoint) -> Path:
        """Write a merge as an adapter, if that has not been done, and return its folder."""
        folder = self._scratch / "adapters" / point.folder
        if not folder.exists():
            try:
                self._spec.write_adapter(point, folder)
            except UserError as error:
                raise _AdapterRefusedError from error
        return folder

    def _lora(self) -> LoraOptions:
        """What the engine must be started with to apply the merges."""
        if self._lora_options is None:
            found = []
            for tuned in self._spec.tuned_points:
                try:
                    with open_adapter(self._adapter(tuned)) as adapter:
                        found.append(lora_options(adapter))
                except ModelError as error:
                    raise _AdapterRefusedError from error
            modules = dict.fromkeys(name for options in found for name in options.modules)
            rank = max(options.rank for options in found)
            self._lora_options = LoraOptions(rank=rank, modules=tuple(modules), count=MAX_LORAS)
        return self._lora_options

    # --- merges in place ------------------------------------------------------------------------------------------

    def _in_place(self, point: MergePoint) -> VLLMEngine:
        shared = self._start(None)
        if self._loaded != point:
            self._loaded = None  # an interruption leaves the weights half-written
            own = self._spec.at(point)
            base, *tuned = (str(model.folder) for model in own.pair.models)
            merge = {
                "base": base,
                "tuned": tuned,
                "references": {role: str(path) for role, path in own.pair.reference_folders.items()},
                "method": own.method,
                "options": dict(own.options),
            }
            lam, plain = own.lam_of(point), own.is_plain(point)
            with loading(self._spec.pair.base.folder, "vLLM"):
                shared.call_workers(MergeWorker.mooring_load.__name__, merge, lam, plain)
            self._loaded = point
        return self._engine(point, shared, None)

    # --- the running engine ---------------------------------------------------------------------------------------

    def _start(self, lora: LoraOptions | None) -> SharedLLM:
        """The running engine, with the base and room for adapters if `lora` is given."""
        if self._shared is None:
            base, worker = self._spec.pair.base.folder, f"{MergeWorker.__module__}.{MergeWorker.__qualname__}"
            with starting(base, self._spec.log):
                self._shared = SharedLLM.start(base, self._options, lora=lora, worker_extension=worker)
            self._loaded = BASE
            self.started += 1
        return self._shared

    def _end(self) -> None:
        if self._shared is not None:
            self._shared.close()
        self._shared, self._loaded = None, None
        self._opened.clear()
        remove(self._scratch / "adapters")

    def _engine(self, point: MergePoint, shared: SharedLLM, request: Any) -> VLLMEngine:
        tokenizer, stops = self._tokenizer(point)
        system, options = self._spec.system, self._options
        thinking = self._spec.runner.thinking
        return VLLMEngine(shared, tokenizer, stops, system=system, adapter=request, options=options, thinking=thinking)

    def _tokenizer(self, point: MergePoint) -> tuple[Any, frozenset[int]]:
        """The tokenizer and stop tokens of a model: its own, or those that its merge would be written with."""
        folder, pair = self._spec.folder_of(point), self._spec.at(point).pair
        models = tuple(model.folder for model in pair.models) if folder is None else (folder,)
        if models not in self._tokenizers:
            with tempfile.TemporaryDirectory() as temporary:
                if folder is None:
                    write_side_files(Path(temporary), pair, pair.tokenizer("larger"), None)
                source = folder or Path(temporary)
                with loading(source, "vLLM"):
                    self._tokenizers[models] = open_tokenizer(open_folder(source))
        return self._tokenizers[models]

    def _needs_own_engine(self, point: MergePoint) -> bool:
        """Whether a model differs from the base in more than its weights."""
        folder = self._spec.folder_of(point)
        if folder is None:
            return bool(self._spec.at(point).pair.config)
        return _architecture(folder) != _architecture(self._spec.pair.base.folder)


class _AdapterRefusedError(Exception):
    """The merge is not an adapter that vLLM can apply."""


def _architecture(folder: Path) -> dict[str, Any]:
    """The fields of a configuration that affect the model that vLLM builds."""
    return _without_ignored(read_config(folder))


def _without_ignored(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields, and those nested in them, without those that do not affect the model."""
    return {
        name: _without_ignored(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _IGNORED_FIELDS
    }
