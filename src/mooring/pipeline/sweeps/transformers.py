"""A merge as an engine: one model in memory whose weights are replaced in place from one λ to the next."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor

from mooring.errors import ModelError
from mooring.events import Event
from mooring.inference.devices import choose_device, load_options, memory_dtype, put
from mooring.inference.engine import Engine
from mooring.inference.placement import Placement, locate
from mooring.inference.transformers import TransformersEngine
from mooring.merge_point import MergePoint
from mooring.merging.in_memory import OpenMerge
from mooring.merging.job import options_of
from mooring.merging.tensor_value import Given as Lam
from mooring.models.classes import (
    attention_options,
    load_config,
    load_tokenizer,
    missing_tensors,
    model_class,
    why_unloadable,
)
from mooring.pipeline.sweeps.folders import FolderSweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.quiet import quiet


class TransformersSweep:
    """A sweep with one model in memory, whose weights change in place. Implements `Sweep`.

    Models with a folder of their own that differs from the base's in configuration or tokenizer are opened from there.
    """

    concurrent = False
    stays_loaded = False

    def __init__(self, spec: SweepSpec, scratch: Path) -> None:
        self._spec = spec
        self._merged = MergedModel(spec)
        self._folders = FolderSweep(spec, scratch)

    def at(self, point: MergePoint) -> Engine:
        """See `Sweep.at`."""
        engine = self._engine(point)
        if self._spec.batch_size_file is not None and isinstance(engine, TransformersEngine):
            engine.record_batch_size(self._spec.batch_size_file)
        return engine

    def _engine(self, point: MergePoint) -> Engine:
        own = self._spec.at(point)
        exists = own.folder_of(point) is not None
        if not exists or (point.is_base and self._merged.keeps_side_files):
            self._folders.close()
            if not point.is_base:  # which every series has
                self._merged.change(own)
            return self._merged.at(own.lam_of(point), plain=own.is_plain(point))
        self._merged.unload()
        return self._folders.at(point)

    def close(self) -> None:
        """See `Sweep.close`."""
        self._folders.close()
        self._merged.unload()


class MergedModel:
    """A base and a tuned model as one model in memory, at any λ.

    The first λ loads the model as transformers would load the merge from disk; each further λ writes the merged values
    into the existing parameters, rearranged as transformers rearranges them (a mixture's experts). Rounding does not
    accumulate: each λ is computed from the models as they are stored, which are kept in memory as far as they fit. If
    transformers ties two weights that the merge keeps separate, the model is loaded again for each λ instead.
    """

    def __init__(self, spec: SweepSpec) -> None:
        options_of(spec.method, 0.5, **spec.options)  # checks them
        self._spec = spec
        self._merge = OpenMerge(spec.pair, method=spec.method, **spec.options)
        self._filled_by: OpenMerge | None = None
        """The merge that the weights of the loaded model are of."""
        self._engine: TransformersEngine | None = None
        self._placement: Placement | None = None
        self._said = False
        self._loaded: tuple[Lam | None, bool] | None = None

    @property
    def in_place(self) -> bool:
        """Whether a change of λ is made in place; it is known once a model is loaded."""
        return self._placement is not None

    @property
    def keeps_side_files(self) -> bool:
        """Whether configuration and tokenizer are the base's, so that the model at λ = 0 equals the base."""
        return self._merge.keeps_side_files

    def change(self, spec: SweepSpec) -> None:
        """Merge other tuned models into the same base from now on, or by another method; does not load the model again
        unless its configuration or its tokenizer changes."""
        same_rule = (spec.method, spec.options) == (self._spec.method, self._spec.options)
        if spec.pair is self._spec.pair and same_rule:
            return
        self._merge.free()
        changed = OpenMerge(spec.pair, method=spec.method, **spec.options)
        if not (self._merge.keeps_side_files and changed.keeps_side_files):
            self.unload()
        self._spec, self._merge, self._loaded = spec, changed, None

    def at(self, lam: "Lam | None", *, plain: bool = False) -> TransformersEngine:
        """Return the model at λ, as `merge` takes it; the same object for each λ: do not use it after the next call.

        With `plain` the models are merged by `linear`, so that λ = 0 is the base and λ = 1 the tuned model, whatever
        the method makes of them.
        """
        if self._engine is None or self._loaded != (lam, plain):
            self._loaded = None  # an interruption leaves the weights half-written
            if self._engine is not None and self._placement is not None:
                self._placement.reset()
                same = self._filled_by is self._merge
                filled = self._placement.filled(self._merge.changed) if same else ()
                self._filled_by = None
                self._merge.fill(lam, self._placement, as_linear=plain, filled=filled)
            else:
                self.unload()
                self._load(lam, plain)
            self._loaded, self._filled_by = (lam, plain), self._merge
        assert self._engine is not None
        return self._engine

    def unload(self) -> None:
        """Free the model; the next `at` loads it again."""
        self._engine, self._placement, self._loaded, self._filled_by = None, None, None, None
        self._merge.free()

    def close(self) -> None:
        """Free the model and close the pair's files; a later read opens them again."""
        self.unload()
        self._merge.close()

    def __enter__(self) -> "MergedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, lam: "Lam | None", plain: bool) -> None:
        runner = self._spec.runner
        with tempfile.TemporaryDirectory() as folder, quiet("transformers"):
            tensors = self._merge.tensors(lam, as_linear=plain)
            self._merge.write_side_files(Path(folder))
            device = choose_device(runner.device, sum(_size(tensor, runner.dtype) for tensor in tensors.values()))
            dtype = memory_dtype(runner.dtype, _stored(tensors), device)
            try:
                model, tokenizer = load_tensors(Path(folder), tensors, dtype, load_options(device))
            except ModelError:
                raise
            except Exception as error:  # loaders raise errors of any type for a broken folder
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                what = f"{self._spec.pair.base.folder}: its merge cannot be loaded ({reason})"
                hint = why_unloadable(self._spec.pair.base.folder)
                raise ModelError(what, hint, code="model.unloadable") from error
        model = put(model, device)
        self._placement = locate(model, tensors)
        if self._placement is None and not self._said:
            self._said = True
            message = "its weights cannot be changed in place, so the model is loaded again for each λ"
            self._spec.on_event(Event(step="model", kind="info", message=message))
        self._engine = TransformersEngine(
            model, tokenizer, system=self._spec.system, batch_size=runner.batch_size, thinking=runner.thinking
        )


def _size(tensor: Tensor, dtype: str) -> int:
    """Bytes of a tensor in the model's memory."""
    return tensor.nbytes if dtype == "auto" else tensor.numel() * int(getattr(torch, dtype).itemsize)


def _stored(tensors: Mapping[str, Tensor]) -> str | None:
    """The type of most values, as torch names it; None if no tensor is of floating point."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=None)


def load_tensors(
    folder: Path, tensors: dict[str, Tensor], dtype: str, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, Any]:
    """Load a model and its tokenizer from a folder without weights, and these weights.

    `options` are further ones of `from_pretrained`.
    On the CPU the model's parameters share memory with the tensors if their type is `dtype`.
    """
    config = load_config(folder)
    kind, part = model_class(config)
    try:
        generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # no file of its own: it is part of the model's configuration
        generation_config = transformers.GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
    model, info = kind.from_pretrained(  # type: ignore[attr-defined]
        None,
        config=part,
        generation_config=generation_config,
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
        **{**attention_options(part), **options},
    )
    if missing := sorted(info["missing_keys"]):
        raise missing_tensors("the merge", config, kind, missing)
    return model, load_tokenizer(folder)
