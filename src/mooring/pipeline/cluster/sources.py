"""What a worker loads: the models of a run, or a judge, named by their folders, so that it can be sent anywhere."""

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mooring.config import Runner
from mooring.errors import ClusterError, UserError
from mooring.events import OnEvent, ignore
from mooring.inference.engine import Engine
from mooring.inference.load import load_engine
from mooring.merge_methods import Role
from mooring.merge_point import MergePoint, Series
from mooring.merging.pair import ModelPair, open_pair
from mooring.pipeline.cluster.stored import fetch
from mooring.pipeline.models import Models
from mooring.pipeline.storage import Storage
from mooring.pipeline.sweeps.sweep import SeriesSpec, SweepSpec


class Loaded(Protocol):
    """What a worker has loaded."""

    def at(self, point: MergePoint) -> Engine:
        """The engine of a model; a judge's, whatever the point is."""
        ...


class Source(Protocol):
    """What a worker loads."""

    def load(self, scratch: Path) -> Loaded:
        """Load it; what is written temporarily goes to `scratch`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesSource:
    """The tuned models of a series, and how they are merged.

    Attributes:
        tuned: Their folders.
        references: The folders of the further models of the method, by role.
        method: A name in `merge_methods.METHODS`.
        options: The method's options besides λ.
    """

    tuned: tuple[Path, ...]
    references: Mapping[Role, Path] = dataclasses.field(default_factory=dict)
    method: str = "linear"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsSource:
    """The models of a run, as `SweepSpec` has them open.

    Attributes:
        base: Folder of the base.
        own: Of a run of one method, its tuned model and method; of a comparison, those of its first series.
        series: In a comparison, those of each series; else the baselines' of a run.
        runner: The engine and its options.
        system: System prompt for prompts that have none.
        log: File for the engine's own logs.
        batch_size_file: Where an engine that finds its batch size records it.
    """

    base: Path
    own: SeriesSource
    series: Mapping[Series, SeriesSource] = dataclasses.field(default_factory=dict)
    runner: Runner
    system: str | None
    log: Path | None = None
    batch_size_file: Path | None = None

    def folders(self) -> set[Path]:
        """The folders of all models."""
        every = (self.own, *self.series.values())
        return {self.base, *(path for each in every for path in (*each.tuned, *each.references.values()))}

    def moved(self, places: Mapping[Path, Path]) -> "ModelsSource":
        """The same models in other folders, without files on the machine that they come from."""

        def series(source: SeriesSource) -> SeriesSource:
            return dataclasses.replace(
                source,
                tuned=tuple(places[path] for path in source.tuned),
                references={role: places[path] for role, path in source.references.items()},
            )

        return dataclasses.replace(
            self,
            base=places[self.base],
            own=series(self.own),
            series={name: series(source) for name, source in self.series.items()},
            log=None,
            batch_size_file=None,
        )

    def with_runner(self, runner: Runner) -> "ModelsSource":
        """The same models in another engine."""
        return dataclasses.replace(self, runner=runner)

    def open(self, on_event: OnEvent = ignore) -> SweepSpec:
        """Open the models' files. Series with the same models share them."""
        pairs: list[tuple[SeriesSource, ModelPair]] = []

        def spec(source: SeriesSource) -> SeriesSpec:
            same = [
                pair for other, pair in pairs if (other.tuned, other.references) == (source.tuned, source.references)
            ]
            if not same:
                pair = open_pair(self.base, [*source.tuned], references=source.references)
                pairs.append((source, pair))
                same = [pair]
            return SeriesSpec(pair=same[0], method=source.method, options=source.options)

        own, series = spec(self.own), {name: spec(source) for name, source in self.series.items()}
        return SweepSpec(
            pair=own.pair,
            method=own.method,
            options=own.options,
            series=series,
            runner=self.runner,
            system=self.system,
            log=self.log,
            batch_size_file=self.batch_size_file,
            on_event=on_event,
        )

    def load(self, scratch: Path) -> Loaded:
        """See `Source.load`. The models themselves are loaded by the first unit, which says which λ is needed."""
        return Models(self.open(), scratch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """The model of a judge.

    Attributes:
        folder: Its folder.
        runner: The engine and its options.
        log: File for the engine's own logs.
    """

    folder: Path
    runner: Runner
    log: Path | None = None

    def folders(self) -> set[Path]:
        """The folder of the model."""
        return {self.folder}

    def moved(self, places: Mapping[Path, Path]) -> "JudgeSource":
        """The same model in another folder, without files on the machine that it comes from."""
        return dataclasses.replace(self, folder=places[self.folder], log=None)

    def load(self, scratch: Path) -> Loaded:
        """See `Source.load`."""
        return _One(load_engine(self.folder, self.runner, None, self.log))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSource:
    """Models that a worker fetches from a storage before it loads them.

    Attributes:
        source: The models, in the folders of the machine that sent them.
        url: The storage.
        digests: By which each folder is found there.
    """

    source: ModelsSource | JudgeSource
    url: str
    digests: Mapping[Path, str]

    def load(self, scratch: Path) -> Loaded:
        """See `Source.load`.

        Raises:
            ClusterError: This node cannot fetch them (`cluster.storage`).
        """
        try:
            storage = Storage.open(self.url)
            places = {path: fetch(storage, digest) for path, digest in self.digests.items()}
        except UserError as error:  # the one that reads it is at another machine
            what = f"node {platform.node()}: cannot fetch the models ({error.message})"
            raise ClusterError(what, error.hint, code="cluster.storage") from None
        return self.source.moved(places).load(scratch)


@dataclasses.dataclass(frozen=True)
class _One:
    engine: Engine

    def at(self, point: MergePoint) -> Engine:
        return self.engine
