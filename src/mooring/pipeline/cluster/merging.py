"""Merge on a Ray cluster: each task fills a part of the output, which every node sees."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mooring.config import Resources
from mooring.errors import ClusterError
from mooring.merging.engine import Done
from mooring.merging.parts import FillWindows, Parts
from mooring.pipeline.cluster.connect import Cluster, check_nodes, connect

RETRIES = 3
"""How often a task is started again after its worker or node was lost."""


def on_cluster(resources: Resources, plugins: Sequence[str] = ()) -> FillWindows:
    """What fills a merge's output on a cluster, with a task for each window of tensors.

    Args:
        resources: The cluster.
        plugins: Plug-ins that the tasks load.

    Raises:
        UserError: See `connect` and `check_nodes`; or as a merge in this process.
    """
    return functools.partial(_fill, resources, tuple(plugins))


def _fill(
    resources: Resources, plugins: Sequence[str], parts: Parts, windows: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, Done]]:
    cluster = connect(resources, 1)
    try:
        folder = parts.folders[0]
        check_nodes(cluster, folder, [each.absolute() for each in parts.inputs()])
        yield from _tasks(cluster, plugins, parts, windows)
    finally:
        cluster.close()


def _tasks(
    cluster: Cluster, plugins: Sequence[str], parts: Parts, windows: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, Done]]:
    ray = cluster.ray
    fill: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_task)
    given = ray.put(parts)
    waiting = {fill.remote(given, names, plugins): number for number, names in windows.items()}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for each in ready:
                number = waiting.pop(each)
                try:
                    yield number, ray.get(each)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    what = f"a task of the merge was lost {RETRIES + 1} times ({type(error).__name__})"
                    raise ClusterError(what, "look at its node's memory", code="cluster.workers_die") from None
    finally:
        for each in waiting:
            ray.cancel(each, force=True)


def _task(parts: Parts, names: Sequence[str], plugins: Sequence[str]) -> Done:
    import torch

    from mooring.plugins import load

    torch.set_num_threads(1)
    for reference in plugins:
        load(reference)
    return parts.fill(names)
