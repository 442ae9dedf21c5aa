"""The workers of a run: connected when they are first needed, with what each kind of them loads."""

import functools
from collections.abc import Iterable
from pathlib import Path

from mooring.config import Judge, Recipe
from mooring.events import OnEvent
from mooring.inference.engine import Engine
from mooring.merge_point import BASE
from mooring.pipeline.cluster.connect import Cluster, check_nodes, connect
from mooring.pipeline.cluster.dispatch import Dispatcher
from mooring.pipeline.cluster.engine import ClusterSweep, fixed, judge_engine
from mooring.pipeline.cluster.sources import JudgeSource, ModelsSource
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.sweeps.sweep import SweepSpec


class Workers:
    """Where a recipe's models and judges run if that is not this process.

    Args:
        recipe: The recipe.
        paths: Its run folder, which exists when the workers are connected.
        on_event: Receives what happens to workers.
    """

    def __init__(self, recipe: Recipe, paths: RunPaths, on_event: OnEvent) -> None:
        self._recipe, self._paths, self._on_event = recipe, paths, on_event

    @functools.cached_property
    def _cluster(self) -> Cluster:
        resources = self._recipe.resources
        return connect(resources, resources.gpus_per_engine or self._recipe.generate.tensor_parallel)

    @functools.cached_property
    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(self._cluster, self._on_event, plugins=self._recipe.plugins)

    def check(self, folders: Iterable[Path]) -> None:
        """Check that the cluster can do the run; `folders` are those that every node has to see.

        Raises:
            UserError: It cannot; see `connect` and `check_nodes`.
        """
        check_nodes(self._cluster, self._paths.folder, folders)

    def sweep(self, spec: SweepSpec, source: ModelsSource) -> ClusterSweep:
        """The models of the run."""
        self._dispatcher.offer("models", source.with_runner(fixed(source.runner)))
        return ClusterSweep(spec, self._dispatcher.submit)

    def judge(self, name: str, folder: Path, section: Judge) -> Engine:
        """A judge's model, as an engine."""
        kind, log = f"judge {name}", self._paths.logs / f"judge-{name}.log"
        self._dispatcher.offer(kind, JudgeSource(folder=folder, runner=fixed(section), log=log.absolute()))
        return judge_engine(self._dispatcher.submit, kind, folder, section, BASE)

    def close(self) -> None:
        """End the workers, and leave the cluster."""
        if "_dispatcher" in self.__dict__:
            self._dispatcher.close()
        if "_cluster" in self.__dict__:
            self._cluster.close()
