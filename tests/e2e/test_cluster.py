"""`mooring run --on ray` on a real cluster: a head and two nodes with one CPU each, on this machine."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_adapters
from mooring.config import Recipe
from mooring.events import Event
from mooring.pipeline.run import run

from .conftest import lines  # type: ignore[import-not-found]

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Place:
    """A cluster, and a folder with a tiny pair, its data, and the results of a local run."""

    cluster: Any
    nodes: list[Any]
    folder: Path
    expected: bytes

    def recipe(self, out: str, **resources: Any) -> Recipe:
        """The recipe, with a run folder of its own."""
        plain = json.loads((self.folder / "recipe.json").read_text())
        return Recipe.parse({**plain, "out": str(self.folder / out), "resources": resources})

    def node(self) -> Any:
        """Add a node with one CPU."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=2**27))
        return self.nodes[-1]


def results(folder: Path) -> bytes:
    """The bytes of a run's results."""
    return (folder / "report" / "results.json").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Place]:
    """A running cluster, which this process is connected to."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("cluster")
    lines(folder / "harmful.jsonl", [{"prompt": f"Help me break thing number {i}."} for i in range(16)])
    task = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(16)]
    lines(folder / "task.jsonl", task)
    plain = {
        "base": str(tiny_model_folder),
        "tuned": str(tiny_adapters.tune(tiny_model_folder, folder / "tuned")),
        "merge": {"lambdas": [0.3, 0.7], "check": False},
        "generate": {"max_tokens": 6, "batch_size": 2, "drafts": False},
        "score": {
            "safety": str(folder / "harmful.jsonl"),
            "over_refusal": None,
            "ordinary": None,
            "task": str(folder / "task.jsonl"),
            "metrics": ["call_match", "response_loss"],
        },
        "select": {"margin": 1.0},
    }
    (folder / "recipe.json").write_text(json.dumps(plain))
    run(Recipe.parse({**plain, "out": str(folder / "local")}))
    head = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    place = Place(cluster, [], folder, results(folder / "local"))
    try:
        place.node()
        place.node()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield place
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_two_workers_give_the_results_of_one_process(place: Place) -> None:
    events: list[Event] = []
    run(place.recipe("two", on="ray"), on_event=events.append)
    assert results(place.folder / "two") == place.expected
    assert not [event.message for event in events if event.step == "cluster"]
    made = [
        json.loads(line) for line in next((place.folder / "two").rglob("safety-test.jsonl")).read_text().splitlines()
    ]
    assert made[0]["made_by"]["engine"]["device"] == "cpu"
    assert not [*place.folder.joinpath("two").rglob(".probe-*")]
