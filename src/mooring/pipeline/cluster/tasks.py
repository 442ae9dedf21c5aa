"""Work that needs no GPU, done by tasks on the CPUs of a cluster: programs that are tested, wordings, task scores."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from mooring.errors import ClusterError
from mooring.pipeline.cluster.connect import Cluster
from mooring.pipeline.cluster.work import Failure, Setup, caught

RETRIES = 3
"""How often a task is started again after its node was lost."""
R = TypeVar("R")


class CpuTasks:
    """Calls functions on the CPUs of a cluster; in this process if it has no GPU, since then its CPUs have the workers.

    Args:
        cluster: The cluster.
        setup: What the tasks have in common with this process.

    Attributes:
        remote: Whether they are called on the cluster.
    """

    def __init__(self, cluster: Cluster, setup: Setup) -> None:
        self._ray, self._setup = cluster.ray, setup
        have = cluster.ray.cluster_resources()
        self.remote = have.get("GPU", 0) >= 1 and have.get("CPU", 0) >= 1
        self._here = threading.Lock()

    def __call__(self, function: Callable[..., R], *args: Any, whole_node: bool = False) -> R:
        """See `Call`.

        Raises:
            ClusterError: The nodes that did it were lost (`cluster.workers_die`).
            UserError: As the function raises.
        """
        if not self.remote:
            with self._here:  # what tests programs takes all cores
                return function(*args)
        ray = self._ray
        cpus = self._most_cores() if whole_node else 1
        task: Any = ray.remote(num_cpus=cpus, max_retries=RETRIES, scheduling_strategy="SPREAD")(_run)
        reference = task.remote(self._setup, function, args)
        try:
            while not ray.wait([reference], timeout=1)[0]:  # so that it can be interrupted
                pass
            result: R | Failure = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            what = f"a task was lost {RETRIES + 1} times ({type(error).__name__})"
            raise ClusterError(what, "look at the memory of its nodes", code="cluster.workers_die") from None
        except BaseException:
            ray.cancel(reference, force=True)
            raise
        if isinstance(result, Failure):
            raise result.error()
        return result

    def _most_cores(self) -> int:
        """The CPUs of the largest node."""
        return max(1, *(int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]))


def _run(setup: Setup, function: Callable[..., R], args: tuple[Any, ...]) -> R | Failure:
    setup.apply()
    return caught(lambda: function(*args))
