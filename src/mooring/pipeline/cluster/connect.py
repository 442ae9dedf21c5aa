"""Connect to a Ray cluster, and check before any work that it can do a run."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import Resources
from mooring.errors import ClusterError, MissingExtraError, UserError
from mooring.pipeline.storage import Storage

PACKAGES = ("torch", "transformers", "peft", "vllm", "mooring")
"""Packages that have to have the versions of this machine on every node, if they are here."""
_ANSWER = 120
"""Seconds in which every node has to answer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        name: Its address and name.
        versions: The versions of Python and of `PACKAGES`; a package that it lacks is left out.
        missing: Of the folders that it has to see, the first one that it does not.
        lacks: Of the programs that it has to have, the first one that it does not.
        problem: Why it could not read or write the run folder; empty if it could.
    """

    name: str
    versions: Mapping[str, str]
    missing: str = ""
    lacks: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        ray: The package.
        resources: What of the cluster is used.
        own: Whether this process connected to it, or started it, and has to leave it.
        per_engine: GPUs of an engine.
    """

    ray: Any
    resources: Resources
    own: bool
    per_engine: int

    def slots(self) -> int:
        """How many workers the cluster has room for now: as its GPUs allow, or its CPUs if it has no GPU."""
        have = self.ray.cluster_resources()
        gpus = int(have.get("GPU", 0))
        if not gpus:
            return int(have.get("CPU", 0))
        used = gpus if self.resources.gpus == "all" else min(gpus, self.resources.gpus)
        return used // self.per_engine

    def options(self) -> dict[str, Any]:
        """What a worker takes of a node."""
        if self.ray.cluster_resources().get("GPU"):
            return {"num_cpus": 0, "num_gpus": self.per_engine}
        return {"num_cpus": 1}

    def close(self) -> None:
        """Leave the cluster."""
        if self.own:
            self.ray.shutdown()


def connect(resources: Resources, per_engine: int) -> Cluster:
    """Connect to a cluster, or start one on this machine.

    Args:
        resources: Where it is, and what of it is used.
        per_engine: GPUs of an engine.

    Raises:
        MissingExtraError: Ray is not installed (`extra.ray`).
        ClusterError: There is no cluster at the address (`cluster.unreachable`), it has other versions of Ray or Python
            (`cluster.versions`), or too few GPUs (`cluster.too_few_gpus`).
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "pip install 'mooring[ray]'", code="extra.ray") from None
    own = not ray.is_initialized()
    if own:
        _init(ray, resources.on)
    cluster = Cluster(ray=ray, resources=resources, own=own, per_engine=per_engine)
    try:
        check_gpus(resources, per_engine, int(ray.cluster_resources().get("GPU", 0)))
    except ClusterError:
        cluster.close()
        raise
    return cluster


def _init(ray: Any, where: str) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if where != "ray":
        host, _, port = where.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError, ValueError):  # a name that is none, or a port of 5,000 digits
            raise _unreachable(where) from None
        quiet["address"] = where
    try:
        ray.init(**quiet)
    except (ConnectionError, TimeoutError):
        raise _unreachable(os.environ.get("RAY_ADDRESS", where) if where == "ray" else where) from None
    except RuntimeError as error:  # "Version mismatch: The cluster was started with: …"
        said = " ".join(str(error).split())
        if "ersion" not in said:
            raise
        hint = "use the cluster's versions of Python and Ray here"
        raise ClusterError(f"{where}: {said}", hint, code="cluster.versions") from None


def _unreachable(where: str) -> ClusterError:
    hint = "start one (`ray start --head`), or correct the address: ray://HOST:PORT, the port of Ray's client server"
    return ClusterError(f"{where}: there is no Ray cluster", hint, code="cluster.unreachable")


def check_gpus(resources: Resources, per_engine: int, there: int) -> None:
    """Check that a cluster has the GPUs that a run asks for.

    Args:
        resources: What a run asks for.
        per_engine: GPUs of an engine.
        there: The GPUs of the cluster; without any, its CPUs work, unless GPUs are asked for.

    Raises:
        ClusterError: It has too few (`cluster.too_few_gpus`).
    """
    asked = resources.gpus
    least = max(per_engine, asked if isinstance(asked, int) else 0)
    explicit = isinstance(asked, int) or per_engine > 1
    if (there or explicit) and there < least:
        hint = "give fewer `gpus` or `gpus_per_engine`, or a larger cluster"
        raise ClusterError(f"the cluster has {there} GPUs, and {least} are needed", hint, code="cluster.too_few_gpus")
    if isinstance(asked, int) and asked < per_engine:
        what = f"`gpus` is {asked}, and one engine needs {per_engine}"
        raise ClusterError(what, "give more `gpus`, or fewer `gpus_per_engine`", code="cluster.too_few_gpus")


def check_nodes(cluster: Cluster, folder: Path, others: Iterable[Path], programs: Sequence[str] = ()) -> None:
    """Check that every node has the same versions, sees the same folders, and reads and writes the run folder.

    Args:
        cluster: The cluster.
        folder: The run folder, which exists.
        others: Other folders that every node has to see, such as those of the models.
        programs: Programs that every node has to have.

    Raises:
        ClusterError: One does not (`cluster.versions`, `cluster.folder`, `cluster.program`).
    """
    token = uuid.uuid4().hex
    ours = folder / f".probe-{token}"
    ours.write_text(token)
    try:
        folders = [str(Path.cwd()), *(str(each.absolute()) for each in others)]
        asked = _Asked(folders=folders, programs=programs, run=str(folder.absolute()), token=token)
        reports = _ask_nodes(cluster, asked)
        written = {path.name for path in folder.glob(f".probe-{token}-*")}
        check_reports(reports, own_versions(), folder, written, token)
    finally:
        for path in folder.glob(f".probe-{token}*"):
            path.unlink(missing_ok=True)


def check_nodes_of_storage(cluster: Cluster, storage: Storage, programs: Sequence[str] = ()) -> None:
    """Check that every node has the same versions, and reads what this process writes to a storage.

    Args:
        cluster: The cluster.
        storage: The storage, which this process can use.
        programs: Programs that every node has to have.

    Raises:
        ClusterError: One does not (`cluster.versions`, `cluster.storage`, `cluster.program`).
    """
    check_machines(_ask_nodes(cluster, _Asked(programs=programs)), own_versions())
    token = uuid.uuid4().hex
    name = f".probe-{token}"
    storage.write(name, token.encode())
    try:
        for node, problem in _on_every_node(cluster, _read_from, storage.url, name, token).values():
            if problem:
                hint = "give every node its credentials, and the same server"
                raise ClusterError(f"node {node}: does not see {storage.url} ({problem})", hint, code="cluster.storage")
    finally:
        storage.remove([name])


def _read_from(id_: str, url: str, name: str, token: str) -> str:
    """Why a node does not read from a storage what it should; empty if it does."""
    try:
        found = Storage.open(url).read(name)
    except UserError as error:
        return error.message.removeprefix(f"{url}: ")
    return "" if found == token.encode() else "it is another one there"


def check_machines(reports: Mapping[str, NodeReport], ours: Mapping[str, str]) -> None:
    """Check what the nodes have, by what they said.

    Raises:
        ClusterError: A node has another version (`cluster.versions`), or lacks a program (`cluster.program`).
    """
    for node in reports.values():
        for package, version in ours.items():
            if node.versions.get(package) != version:
                there = node.versions.get(package, "none")
                what = f"node {node.name}: has {package} {there}, and this machine {version}"
                raise ClusterError(what, "install the same versions on every node", code="cluster.versions")
        if node.lacks:
            hint = "install it on every node that has CPUs"
            raise ClusterError(f"node {node.name}: has no {node.lacks}", hint, code="cluster.program")


def check_reports(
    reports: Mapping[str, NodeReport], ours: Mapping[str, str], folder: Path, written: Iterable[str], token: str
) -> None:
    """Check what the nodes said, by their ids; `written` are the names of the files that arrived in the run folder.

    Raises:
        ClusterError: A node is not as it has to be (`cluster.folder`, and as `check_machines`).
    """
    check_machines(reports, ours)
    arrived = {*written}
    for id_, node in reports.items():
        share = "put it on a file system that every node sees under the same path"
        if node.missing:
            raise ClusterError(f"node {node.name}: does not see {node.missing}", share, code="cluster.folder")
        if node.problem or f".probe-{token}-{id_}" not in arrived:
            why = f" ({node.problem})" if node.problem else ""
            what = f"node {node.name}: does not share the run folder {folder}{why}"
            raise ClusterError(what, share, code="cluster.folder")


def own_versions() -> dict[str, str]:
    """The versions that every node has to have: of Python and of `PACKAGES`."""
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _installed()}}


def _installed() -> Sequence[str]:
    return [name for name in PACKAGES if next(iter(importlib.metadata.Distribution.discover(name=name)), None)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What nodes are asked: which of these folders and programs they have, and to answer in the run folder."""

    folders: Sequence[str] = ()
    programs: Sequence[str] = ()
    run: str = ""
    token: str = ""


def _ask_nodes(cluster: Cluster, asked: _Asked) -> dict[str, NodeReport]:
    """Have each node say what it has, and write a file to the run folder."""
    plain = (asked.folders, asked.programs, asked.run, asked.token, PACKAGES)

    def say(
        id_: str, folders: Sequence[str], programs: Sequence[str], run: str, secret: str, packages: Sequence[str]
    ) -> Mapping[str, Any]:
        # Sent as it is, so that it also works where mooring is not installed.
        import importlib.metadata
        import platform
        import shutil
        from pathlib import Path

        versions = {"Python": platform.python_version()}
        for name in packages:
            found = next(iter(importlib.metadata.Distribution.discover(name=name)), None)
            versions |= {name: found.version} if found else {}
        problem = ""
        try:
            if run and (Path(run) / f".probe-{secret}").read_text() == secret:
                (Path(run) / f".probe-{secret}-{id_}").write_text(secret)
        except OSError as error:
            problem = error.strerror or str(error)
        missing = next((each for each in folders if not Path(each).exists()), "")
        lacks = next((each for each in programs if not shutil.which(each)), "")
        return {"versions": versions, "missing": missing, "lacks": lacks, "problem": problem}

    said = _on_every_node(cluster, say, *plain)
    reports = {id_: NodeReport(name=name, **report) for id_, (name, report) in said.items()}
    works = {node["NodeID"] for node in cluster.ray.nodes() if node["Resources"].get("CPU", 0) >= 1}
    return {id_: report if id_ in works else dataclasses.replace(report, lacks="") for id_, report in reports.items()}


def _on_every_node(cluster: Cluster, function: Callable[..., Any], *args: Any) -> dict[str, tuple[str, Any]]:
    """Call a function on each node, with its id first. Returns the name of each and the result, by id."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray, asked = cluster.ray, {}
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    for id_ in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=id_, soft=False)
        remote = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(function)
        asked[id_] = remote.remote(id_, *args)
    found = {}
    for id_, reference in asked.items():
        name = f"{nodes[id_].get('NodeManagerHostname', '')} ({nodes[id_].get('NodeManagerAddress', '')})"
        try:
            found[id_] = (name, ray.get(reference, timeout=_ANSWER))
        except ray.exceptions.GetTimeoutError:
            what, hint = f"node {name}: does not answer", "remove it from the cluster, or start its Ray again"
            raise ClusterError(what, hint, code="cluster.unreachable") from None
        except ray.exceptions.RayError:  # it left meanwhile
            continue
    return found
