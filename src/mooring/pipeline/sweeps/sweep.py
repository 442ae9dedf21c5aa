"""The interface of a sweep over λ, and what every sweep is made from."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mooring.chat import DEFAULT_SYSTEM
from mooring.config import Runner
from mooring.events import OnEvent, ignore
from mooring.inference.engine import Engine
from mooring.merge_point import TUNED, MergePoint, Series, SeriesPoint
from mooring.merging.adapter import merge_adapters
from mooring.merging.job import Job, options_of
from mooring.merging.merge import merge_pair
from mooring.merging.pair import ModelPair
from mooring.models import Adapter
from mooring.pipeline.module_groups import patterns, tensor_names


class Sweep(Protocol):
    """A base and a tuned model that answer at any point of their merge."""

    @property
    def concurrent(self) -> bool:
        """Whether the engines of several points can be used at the same time, from several threads.

        If not, an engine must not be used after the next call of `at`: its weights have changed.
        """
        ...

    @property
    def stays_loaded(self) -> bool:
        """Whether the models should stay loaded while others steps of a run are done, since loading them takes long."""
        ...

    def at(self, point: MergePoint) -> Engine:
        """The engine of a model.

        Raises:
            ModelError: The model cannot be loaded, or the merge has an invalid input.
        """
        ...

    def close(self) -> None:
        """Free every model; a later `at` loads them again."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """The tuned models of one series of a comparison, open beside the base, and how they are merged."""

    pair: ModelPair
    method: str = "linear"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A base and a tuned model, how they are merged, and how the merge is run.

    Attributes:
        pair: The base and the tuned model, or several of them, open.
        method: A name in `merge_methods.METHODS`.
        options: The method's options besides λ, such as `{"density": 0.5}`; an option that is None is not set.
        runner: The engine and its options.
        system: System prompt for prompts that have none.
        written: Merges that are on the disk permanently, and their folders.
        log: File for the engine's own logs; None for a temporary one.
        series: In a comparison, the models, method and options of each series; else the baselines' of a run.
        batch_size_file: Where an engine that finds its batch size records it, for the engines after it.
        on_event: Receives a line if the engine has to do something in a slower way.
    """

    pair: ModelPair
    method: str = "linear"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runner: Runner = dataclasses.field(default_factory=Runner)
    system: str | None = DEFAULT_SYSTEM
    series: Mapping[Series, "SeriesSpec"] = dataclasses.field(default_factory=dict)
    written: dict[MergePoint, Path] = dataclasses.field(default_factory=dict)
    log: Path | None = None
    batch_size_file: Path | None = None
    on_event: OnEvent = ignore

    def at(self, point: MergePoint) -> "SweepSpec":
        """The specification with the models, method and options of a point's own series, if it has one."""
        if not isinstance(point, SeriesPoint):
            return self
        own = self.series[point.series]
        return dataclasses.replace(self, pair=own.pair, method=own.method, options=own.options)

    @property
    def all(self) -> "Sequence[SweepSpec]":
        """The specifications by the tuned models that they are of: the run's own, if it is none of a series."""
        return [self if point == TUNED else self.at(point) for point in self.tuned_points]

    @property
    def tuned_points(self) -> Sequence[MergePoint]:
        """The tuned model of the run, if it is none of a series, and that of each series."""
        of_series = any(own.pair is self.pair for own in self.series.values())
        return [*([] if of_series else [TUNED]), *(series.at(TUNED) for series in self.series)]

    @property
    def pairs(self) -> Sequence[ModelPair]:
        """The base with the tuned models of each series, each combination once."""
        pairs = [self.pair, *(own.pair for own in self.series.values())]
        return list({id(pair): pair for pair in pairs}.values())

    def close(self) -> None:
        """Close the files of all models."""
        for pair in self.pairs:
            pair.close()

    @functools.cached_property
    def tensor_names(self) -> list[str]:
        """The names of the base's tensors that a merge can change."""
        return tensor_names(self.pair.base)

    def folder_of(self, point: MergePoint) -> Path | None:
        """The folder of a full checkpoint that exists already; None if the model has to be merged."""
        if point.is_base:
            return self.pair.base.folder
        tuned = self.at(point).pair.tuned[0]
        return tuned.folder if point.is_tuned and not isinstance(tuned, Adapter) else None

    def lam_of(self, point: MergePoint) -> float | dict[str, float]:
        """λ as merging takes it: a number, or numbers by patterns of tensor names."""
        return patterns(self.tensor_names, point.overrides, point.lam) if point.by_module else point.lam

    def method_of(self, point: MergePoint) -> tuple[str, Mapping[str, Any]]:
        """The method and its options at a point; `linear` at the ends, whatever a method would make of them."""
        own = self.at(point)
        return ("linear", {}) if self.is_plain(point) else (own.method, own.options)

    def is_plain(self, point: MergePoint) -> bool:
        """Whether a point is the base or a tuned model itself."""
        return point.is_base or point.is_tuned

    def write(self, point: MergePoint, out: Path) -> Path:
        """Write a merged model to a new folder."""
        method, options = self.method_of(point)
        return merge_pair(
            self.at(point).pair, out, method=method, options=options_of(method, self.lam_of(point), **options)
        )

    def write_adapter(self, point: MergePoint, out: Path) -> Path:
        """Write the merged adapter of a model to a new folder; errors as in `merge_adapters`."""
        method, options = self.method_of(point)
        base, *tuned = (model.folder for model in self.at(point).pair.models)
        job = Job(
            method=method,
            base=str(base),
            tuned=tuple(map(str, tuned)),
            options=options_of(method, self.lam_of(point), **options),
        )
        return merge_adapters(base, tuned, out, job)
