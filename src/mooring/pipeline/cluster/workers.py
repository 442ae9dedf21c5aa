"""The workers of a command: connected when they are first needed, with what each kind of them loads."""

import functools
import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mooring.config import Judge, Resources, Score
from mooring.errors import ModelError, RecipeError
from mooring.events import OnEvent
from mooring.inference.engine import Engine
from mooring.merge_point import BASE
from mooring.metrics import pass_ks
from mooring.models import is_adapter
from mooring.pipeline.call import Call, here
from mooring.pipeline.cluster.connect import Cluster, check_nodes, check_nodes_of_storage, connect
from mooring.pipeline.cluster.dispatch import Dispatcher
from mooring.pipeline.cluster.engine import ClusterSweep, fixed, judge_engine
from mooring.pipeline.cluster.sources import JudgeSource, ModelsSource, Source, StoredSource
from mooring.pipeline.cluster.stored import send
from mooring.pipeline.cluster.tasks import CpuTasks
from mooring.pipeline.cluster.work import Setup
from mooring.pipeline.storage import Storage
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.plugins import in_file
from mooring.scoring.bertscore import encoder_folder


class Workers:
    """Where models and judges run if that is not this process.

    Args:
        resources: The cluster, and what of it is used.
        folder: The folder that results are written to, which exists when the workers are connected.
        metrics: The task metrics that are computed.
        score: The options of scoring.
        plugins: Plug-ins that the workers load.
        per_engine: GPUs of an engine, unless `resources` says it.
        logs: Folder for the logs of their engines; None for temporary files.
        on_event: Receives what happens to workers.
    """

    def __init__(
        self,
        resources: Resources,
        folder: Path,
        *,
        metrics: Collection[str],
        score: Score,
        plugins: Sequence[str],
        per_engine: int,
        logs: Path | None,
        on_event: OnEvent,
    ) -> None:
        self._resources, self._folder, self._plugins, self._logs = resources, folder, plugins, logs
        self._metrics, self._score = metrics, score
        self._per_engine, self._on_event = resources.gpus_per_engine or per_engine, on_event
        self._sent: dict[Path, str] = {}
        """The digests of the folders that are in the storage."""
        self._sending = threading.Lock()

    @functools.cached_property
    def _cluster(self) -> Cluster:
        return connect(self._resources, self._per_engine)

    @functools.cached_property
    def _storage(self) -> Storage | None:
        return Storage.open(self._resources.storage) if self._resources.storage else None

    @functools.cached_property
    def _setup(self) -> Setup:
        return Setup.of_this_process(self._plugins, shared=self._storage is None)

    @functools.cached_property
    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(self._cluster, self._on_event, setup=self._setup)

    @functools.cached_property
    def call(self) -> Call:
        """Calls functions on the CPUs of the cluster."""
        return here if self._stays else CpuTasks(self._cluster, self._setup)

    @property
    def _stays(self) -> bool:
        """Whether such functions are called in this process: a storage does not have BERTScore's encoder."""
        return self._storage is not None and "bert_score" in self._metrics

    def connect(self) -> None:
        """Connect, before several threads use the workers."""
        _ = self._dispatcher, self.call

    def check(self, folders: Iterable[Path]) -> None:
        """Check that the cluster can do the work; `folders` are those of the models.

        Raises:
            UserError: It cannot; see `connect`, `check_nodes` and `check_nodes_of_storage`.
        """
        storage, score, call = self._storage, self._score, self.call
        sandbox = isinstance(call, CpuTasks) and call.remote and pass_ks(self._metrics) and not score.unsafe_exec
        programs = ["bwrap"] if sandbox else []
        if storage is None:
            encoders = [encoder_folder(score.bertscore_model)] if "bert_score" in self._metrics else []
            check_nodes(self._cluster, self._folder, [*folders, *encoders], programs)
            return
        for plugin in filter(in_file, self._plugins):
            hint = "install it on every node, and name it as module:object"
            what = f"plugins: workers do not have the file of {plugin}"
            raise RecipeError(what, hint, code="recipe.plugin_not_there")
        storage.check()
        check_nodes_of_storage(self._cluster, storage, programs)

    def sweep(self, spec: SweepSpec, source: ModelsSource) -> ClusterSweep:
        """The models of a run."""
        self._dispatcher.offer("models", self._reachable(source.with_runner(fixed(source.runner))))
        return ClusterSweep(spec, self._dispatcher.submit)

    def judge(self, name: str, folder: Path, section: Judge) -> Engine:
        """A judge's model, as an engine.

        Raises:
            ModelError: It is an adapter, whose base is not sent along to a storage (`model.adapter_not_sent`).
        """
        kind, log = f"judge {name}", (self._logs / f"judge-{name}.log").absolute() if self._logs else None
        if self._storage is not None and is_adapter(folder):
            hint = "merge it: mooring merge BASE ADAPTER --lam 1"
            what = f"{folder}: workers can only fetch a judge that is a whole model"
            raise ModelError(what, hint, code="model.adapter_not_sent")
        self._dispatcher.offer(kind, self._reachable(JudgeSource(folder=folder, runner=fixed(section), log=log)))
        return judge_engine(self._dispatcher.submit, kind, folder, section, BASE)

    def _reachable(self, source: ModelsSource | JudgeSource) -> Source:
        """A source that every worker can load: without a shared file system, from the storage."""
        storage = self._storage
        if storage is None:
            return source
        with self._sending:
            for folder in sorted(source.folders() - self._sent.keys()):
                self._sent[folder] = send(storage, folder, self._on_event)
            digests = {folder: self._sent[folder] for folder in source.folders()}
        return StoredSource(source=source, url=storage.url, digests=digests)

    def close(self) -> None:
        """End the workers, and leave the cluster."""
        if "_dispatcher" in self.__dict__:
            self._dispatcher.close()
        if "_cluster" in self.__dict__:
            self._cluster.close()
